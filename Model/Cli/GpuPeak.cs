using LaspNative.Runtime;

namespace LaspNative.Cli;

/// <summary>
/// A GPU's name and the most dense bf16 TFLOP/s, summed in fp32, that its maker's data sheet promises (half of what sheets print "with sparsity"); null for a GPU not listed here.
/// </summary>
internal sealed record GpuPeak(string Name, double? PeakTeraFlops)
{
    /// <summary>The first part that a GPU's name holds counts.</summary>
    private static readonly (string Part, double Peak)[] s_dataSheets =
        [("GB200", 2500), ("B200", 2250), ("H200 NVL", 835), ("H200", 989), ("H100 NVL", 835), ("H100 PCIe", 756), ("H100", 989), ("A100", 312), ("L40S", 362), ("A40", 150), ("RTX 4090", 165), ("RTX 3090", 71)];

    public static GpuPeak? OfFirst() => SystemProbe.Run().Gpus is [GpuReport gpu, ..]
        ? new GpuPeak(gpu.Name, s_dataSheets.FirstOrDefault(s => gpu.Name.Contains(s.Part, StringComparison.Ordinal)) is { Peak: > 0 } sheet ? sheet.Peak : null)
        : null;
}
