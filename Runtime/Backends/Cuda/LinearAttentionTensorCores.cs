namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Linear attention on the matrix products of a warp (linear_attention_mma.cu), sm_80 and later: bf16 of any widths, one decay for all channels. F32 tensors and a decay per channel stay on the
/// kernels of LinearAttention.cs.
/// </summary>
internal sealed partial class CudaBackend
{
    private const string TensorCoresFile = "linear_attention_mma";

    /// <summary>Stages of a state kernel.</summary>
    private const long StateStages = 3;

    /// <summary>Of a stage: a chunk's log decays.</summary>
    private const long StepBytes = AttentionRun.Tile * sizeof(float);

    /// <summary>What a block of these kernels holds in shared memory besides what its launch asks for, at most.</summary>
    private const long FixedSharedBytes = 512;

    private static readonly TensorCoreWalk[] s_narrowWalks =
    [
        new("linear_attention_walk_mma_64x64", 64, 64, 2), new("linear_attention_walk_mma_128x64", 128, 64, 2), new("linear_attention_walk_mma_256x64", 256, 64, 1),
    ];

    private static readonly TensorCoreWalk[] s_wideWalks =
    [
        new("linear_attention_walk_mma_64x128", 64, 128, 2), new("linear_attention_walk_mma_128x128", 128, 128, 2), .. s_narrowWalks,
    ];

    /// <summary>A walk kernel: D up to <paramref name="Width"/>, <paramref name="Slice"/> columns of E a block.</summary>
    private readonly record struct TensorCoreWalk(string Kernel, long Width, long Slice, long Stages)
    {
        public uint Threads => TensorCoreThreads(Slice);

        public long SharedBytes(bool grouped)
        {
            long stage = ((2 * Width) + Slice) * AttentionRun.Tile * 2, pairs = AttentionRun.Tile * AttentionRun.Tile * 2, sums = AttentionRun.Tile * Slice * sizeof(float);
            return (Stages * (stage + StepBytes)) + (Threads / WarpThreads * 2 * StepBytes) + pairs + (grouped ? sums : 0);
        }
    }

    /// <summary>A warp for 16 columns of a slice.</summary>
    private static uint TensorCoreThreads(long slice) => (uint)(2 * slice);

    private static bool RunsOnTensorCores(AttentionPass pass) => pass.Element == DType.BF16 && !pass.PerChannel;

    private void SegmentStatesOnTensorCores(AttentionPass pass, AttentionOperand k, AttentionOperand v, double scale, nint states)
    {
        AttentionRun run = pass.Run;
        (string kernel, long width, long slice) = (k.Width > 64, v.Width > 64) switch
        {
            (false, false) => ("linear_attention_state_mma_64x64", 64, 64),
            (false, true) => ("linear_attention_state_mma_64x128", 64, 128),
            (true, false) => ("linear_attention_state_mma_128x64", 128, 64),
            (true, true) => ("linear_attention_state_mma_128x128", 128, 128),
        };
        long blocks = run.States * run.Batches * run.Heads * CeilDivide(k.Width, width) * CeilDivide(v.Width, slice), stage = (width + slice) * AttentionRun.Tile * 2;
        uint threads = TensorCoreThreads(slice);
        Launch(
            TensorCoresFile, kernel, pass.Element, Blocks(blocks, threads, (StateStages * (stage + StepBytes)) + (threads / WarpThreads * StepBytes)),
            k.Pointer, v.Pointer, pass.Decay.Pointer, (int)pass.Decay.Kind, run.Tokens, run.Heads, k.Heads, k.Width, v.Width, run.Batches,
            run.SegmentTokens, SegmentRows(run), pass.Direction, (float)scale, states);
    }

    private void OutputOnTensorCores(
        AttentionPass pass, AttentionOperand q, AttentionOperand k, AttentionOperand v, double keyScale, double outputScale, nint entering, bool transposed, Tensor output)
    {
        AttentionRun run = pass.Run;
        bool grouped = k.Heads > q.Heads;
        TensorCoreWalk walk = WalkFor(q.Width, v.Width, grouped);
        Launch(
            TensorCoresFile, walk.Kernel, pass.Element, Blocks(run.Segments * run.Batches * q.Heads * CeilDivide(v.Width, walk.Slice), walk.Threads, walk.SharedBytes(grouped)),
            q.Pointer, k.Pointer, v.Pointer, pass.Decay.Pointer, (int)pass.Decay.Kind, run.Tokens, q.Heads, k.Heads, q.Width, v.Width, run.Batches,
            run.SegmentTokens, SegmentRows(run), pass.Direction, (float)keyScale, (float)outputScale, entering, transposed ? 1 : 0, output.Pointer);
    }

    /// <summary>The widest slices and the narrowest D that do, on a GPU with this much shared memory; sums over heads take slices of 64.</summary>
    private TensorCoreWalk WalkFor(long width, long valueWidth, bool grouped)
    {
        foreach (TensorCoreWalk walk in valueWidth > 64 && !grouped ? s_wideWalks : s_narrowWalks)
            if (walk.Width >= width && walk.SharedBytes(grouped) + FixedSharedBytes <= _device.MaxSharedBytes) return walk;
        throw new LaspException($"linear attention of {width} by {valueWidth} channels needs more shared memory than the {_device.MaxSharedBytes} bytes of this GPU");
    }
}
