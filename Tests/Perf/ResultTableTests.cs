using LaspNative.Perf;
using Xunit;

namespace LaspNative.Tests.Perf;

public class ResultTableTests
{
    [Theory]
    [InlineData("copy engines", "copy engines", "  2.0000 ->    1.0000 ms  x 0.500")]
    [InlineData("NCCL", "copy engines", "  2.0000 ->    1.0000 ms  x 0.500  (gradients by NCCL, now by copy engines)")]
    [InlineData(null, "NCCL", "  2.0000 ->    1.0000 ms  x 0.500  (gradients by what was not told, now by NCCL)")]
    [InlineData(null, null, "  2.0000 ->    1.0000 ms  x 0.500")]
    public void A_row_is_told_apart_from_one_whose_gradients_were_carried_otherwise(string? before, string? now, string end)
    {
        var text = new StringWriter();
        new ResultTable(text).Comparison(Record(1, now), Record(2, before));
        Assert.EndsWith(end, text.ToString().TrimEnd(), StringComparison.Ordinal);
    }

    private static PerformanceRecord Record(double milliseconds, string? carrier) =>
        new("machine", "commit", "date", 1, 1, [new Measurement("step", "shape") { Milliseconds = milliseconds, GradientCarrier = carrier }]);
}
