namespace LaspNative.Tests.Oracles;

/// <summary>
/// RMS norms in fp64, with or without weight and gate, gradients from the written-out Jacobian of each row:
///   y_i = x_i r w_i s_i,  r = (mean(x^2) + eps)^(-1/2),  s_i = silu(gate_i)        dy_i/dx_j = w_i s_i ((i = j) r - x_i x_j r^3 / C)
/// Without a gate this is RMSNorm, with one the head norm of the linear layer.
/// </summary>
public sealed record NormalizationOracle(double[] X, int Width, double[]? Weight, double[]? Gate, double Eps)
{
    public sealed record Values(double[] Y, double[] InverseRms);

    public sealed record Gradients(double[] X, double[] Gate, double[] Weight);

    private double W(int i) => Weight?[i % Width] ?? 1;

    private double S(int i) => Gate is null ? 1 : ElementwiseOracle.Silu(Gate[i]);

    public Values Forward()
    {
        var inverse = new double[X.Length / Width];
        for (int row = 0; row < inverse.Length; row++)
        {
            double sum = 0;
            for (int i = 0; i < Width; i++) sum += X[row * Width + i] * X[row * Width + i];
            inverse[row] = 1 / Math.Sqrt(sum / Width + Eps);
        }
        var y = new double[X.Length];
        for (int i = 0; i < y.Length; i++) y[i] = X[i] * inverse[i / Width] * W(i) * S(i);
        return new Values(y, inverse);
    }

    public Gradients Backward(double[] dy)
    {
        double[] inverse = Forward().InverseRms;
        var g = new Gradients(new double[X.Length], new double[X.Length], new double[Width]);
        for (int i = 0; i < X.Length; i++)
        {
            int row = i / Width;
            double r = inverse[row];
            for (int j = row * Width; j < (row + 1) * Width; j++)
                g.X[j] += dy[i] * W(i) * S(i) * ((i == j ? r : 0) - X[i] * X[j] * r * r * r / Width);
            if (Gate is not null) g.Gate[i] = dy[i] * X[i] * r * W(i) * ElementwiseOracle.SiluSlope(Gate[i]);
            g.Weight[i % Width] += dy[i] * X[i] * r * S(i);
        }
        return g;
    }
}
