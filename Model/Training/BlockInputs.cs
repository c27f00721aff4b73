using LaspNative.Autograd;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Model;

/// <summary>
/// The place where inputs of blocks that are computed again wait for backward: some on the device, the rest beside it. On a GPU the memory beside it is pinned, and allocated here, before the first step.
/// Its size follows from the run and from <see cref="Recomputation.HostBytes"/>, never from what the host says it has. Where it is short, more inputs stay on the GPU, and one line says so.
/// </summary>
internal static class BlockInputs
{
    /// <param name="tokens">Of one rank, over its sequences.</param>
    /// <param name="note">Takes the line.</param>
    /// <returns>Null where all inputs stay on the device.</returns>
    public static InputStash? Open(TrainOptions options, Device device, long tokens, Action<string> note)
    {
        if (options.Recomputation.DeviceBytes is not { } staying) return null;
        long each = tokens * options.Config.HiddenSize * options.DType.Size(), most = options.Recomputation.HostBytes ?? long.MaxValue;
        long leaving = Leaving(options, staying, each);
        if (device is not CudaDevice gpu) return new InputStash(staying, new CpuHostMemory(most));
        long needed = CudaHostMemory.BytesFor(leaving, each);
        var host = new CudaHostMemory(gpu, Math.Min(needed, most));
        if (host.Bytes < needed) note(Shortage(host.Bytes, needed, isLimit: needed > most, leaving, each));
        return new InputStash(staying, host);
    }

    /// <summary>How many of the blocks' inputs do not stay on the device.</summary>
    private static long Leaving(TrainOptions options, long staying, long each)
    {
        int layers = options.Config.NumHiddenLayers, inputs = Enumerable.Range(0, layers).Count(layer => options.Recomputation.Covers(layer, layers));
        return Math.Max(0, inputs - staying / Math.Max(1, each));
    }

    private static string Shortage(long bytes, long needed, bool isLimit, long leaving, long each)
    {
        long more = leaving - bytes / CudaHostMemory.BytesFor(1, each);
        string cause = isLimit ? "--pinned-memory allows no more" : "the host gives no more";
        return FormattableString.Invariant($"{bytes / (double)(1L << 30):0.0} of {needed / (double)(1L << 30):0.0} GiB of pinned memory, as {cause}: {more} of the blocks' inputs stay on the GPU beside those of --checkpoint-memory");
    }
}
