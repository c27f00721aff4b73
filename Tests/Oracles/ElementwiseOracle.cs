using LaspNative.Runtime;

namespace LaspNative.Tests.Oracles;

/// <summary>Elementwise ops and rotary embedding in fp64, one element at a time.</summary>
public static class ElementwiseOracle
{
    public static double Sigmoid(double x) => 1 / (1 + Math.Exp(-x));

    public static double Silu(double x) => x * Sigmoid(x);

    /// <summary>d silu(x) / dx.</summary>
    public static double SiluSlope(double x) => Sigmoid(x) * (1 + x * (1 - Sigmoid(x)));

    public static double Activate(double x, GateActivation activation) => activation == GateActivation.Silu ? Silu(x) : x;

    public static double ActivateSlope(double x, GateActivation activation) => activation == GateActivation.Silu ? SiluSlope(x) : 1;

    public static double[] Map(double[] x, Func<double, double> f) => Array.ConvertAll(x, v => f(v));

    public static double[] Map(double[] x, double[] y, Func<double, double, double> f) => [.. x.Zip(y, f)];

    public static double[] Map(double[] x, double[] y, double[] z, Func<double, double, double, double> f) => [.. x.Zip(y, z).Select(t => f(t.First, t.Second, t.Third))];

    /// <summary>x [B,N,H,D]: the pair (x[d], x[d + D/2]) as a complex number times exp(i angle), angle = +-(first + n) theta^(-2d/D).</summary>
    public static double[] Rope(double[] x, int b, int n, int h, int d, long first, double theta, bool inverse)
    {
        var y = new double[x.Length];
        for (int row = 0; row < b * n * h; row++)
        {
            long position = first + row / h % n;
            for (int p = 0; p < d / 2; p++)
            {
                double angle = (inverse ? -position : position) * Math.Pow(theta, -2.0 * p / d);
                var turned = new System.Numerics.Complex(x[row * d + p], x[row * d + p + d / 2]) * System.Numerics.Complex.FromPolarCoordinates(1, angle);
                (y[row * d + p], y[row * d + p + d / 2]) = (turned.Real, turned.Imaginary);
            }
        }
        return y;
    }
}
