using Xunit;

namespace LaspNative.Tests.Oracles;

/// <summary>How far a result is from its reference: one definition for every test.</summary>
public static class Errors
{
    /// <summary>
    /// ||actual - expected||_2 / ||expected||_2, or ||actual - expected||_2 where expected is all zero. NaN anywhere gives infinity: it never passes.
    /// An infinity agrees with the same infinity, and with nothing else.
    /// </summary>
    public static double Relative(ReadOnlySpan<double> actual, ReadOnlySpan<double> expected)
    {
        if (actual.Length != expected.Length) throw new ArgumentException($"{actual.Length} values against {expected.Length}", nameof(actual));
        double difference = 0;
        double reference = 0;
        for (int i = 0; i < actual.Length; i++)
        {
            if (double.IsInfinity(expected[i]) && actual[i] == expected[i]) continue;
            difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
            reference += expected[i] * expected[i];
        }
        double error = reference > 0 ? Math.Sqrt(difference / reference) : Math.Sqrt(difference);
        return double.IsNaN(error) ? double.PositiveInfinity : error;
    }

    /// <summary>Fails, naming what was compared, when the relative error is above the tolerance.</summary>
    public static void AssertClose(ReadOnlySpan<double> actual, ReadOnlySpan<double> expected, double tolerance, string what)
    {
        double error = Relative(actual, expected);
        Assert.True(error <= tolerance, $"{what}: relative error {error:e2} is above {tolerance:e2}");
    }
}
