namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Linear attention on Hopper's warpgroup products (linear_attention_state_wgmma.cu, linear_attention_output_wgmma.cu, linear_attention_key_value_wgmma.cu): bf16, one decay for all channels, widths
/// of multiples of 8 up to 128, and tensors and states that start on 16 bytes. Other bf16, and everything under LASP_FORCE_SM80, is for LinearAttentionTensorCores.cs.
/// </summary>
internal sealed partial class CudaBackend
{
    private const string StateWarpgroupsFile = "linear_attention_state_wgmma";
    private const string OutputWarpgroupsFile = "linear_attention_output_wgmma";
    private const string KeyValueWarpgroupsFile = "linear_attention_key_value_wgmma";

    /// <summary>WARPGROUP of wgmma.cuh.</summary>
    private const uint Warpgroup = 128;

    /// <summary>Bytes of a sub-chunk's 64 tokens in one column.</summary>
    private const long ColumnBytes = AttentionRun.Tile * 2;

    /// <summary>Widest operand of these kernels; narrower ones are filled up with zeros to this or to its half.</summary>
    private const long WarpgroupWidth = 128;

    private static bool IsWide(long width) => width > WarpgroupWidth / 2;

    private static bool IsWide(AttentionOperand operand) => IsWide(operand.Width);

    private static long FilledWidth(long width) => IsWide(width) ? WarpgroupWidth : WarpgroupWidth / 2;

    private static long FilledWidth(AttentionOperand operand) => FilledWidth(operand.Width);

    private bool RunsOnWarpgroups(AttentionPass pass, nint states, params ReadOnlySpan<AttentionOperand> operands)
    {
        bool fits = pass.Element == DType.BF16 && !pass.PerChannel && states % 16 == 0;
        foreach (AttentionOperand operand in operands) fits &= FitsWarpgroups(operand.Width) && operand.Pointer % 16 == 0;
        return fits;
    }

    private bool FitsWarpgroups(long width) => _device.Kernels.Architecture == "sm_90a" && width <= WarpgroupWidth && width % Pack == 0;

    /// <summary>As many stages as fit <paramref name="bytes"/>, and <paramref name="more"/> bytes.</summary>
    private static long StagedBytes(long bytes, long columns, long more) => (bytes / (columns * ColumnBytes) * columns * ColumnBytes) + more;

    private void SegmentStatesOnWarpgroups(AttentionPass pass, AttentionOperand k, AttentionOperand v, double scale, nint states)
    {
        AttentionRun run = pass.Run;
        string kernel = (IsWide(k), IsWide(v)) switch
        {
            (false, false) => "linear_attention_state_64_64",
            (false, true) => "linear_attention_state_64_128",
            (true, false) => "linear_attention_state_128_64",
            (true, true) => "linear_attention_state_128_128",
        };
        long perMultiprocessor = IsWide(k) ? 1 : 2, shared = StagedBytes((200 << 10) / perMultiprocessor, FilledWidth(k) + FilledWidth(v), 8 << 10);
        Launch(
            StateWarpgroupsFile, kernel, pass.Element, Blocks(run.States * run.Batches * run.Heads, Warpgroup * (IsWide(k) ? 3u : 2u), shared),
            k.Pointer, v.Pointer, pass.Decay.Pointer, (int)pass.Decay.Kind, run.Tokens, run.Heads, k.Heads, k.Width, v.Width, run.Batches,
            run.SegmentTokens, SegmentRows(run), pass.Direction, (float)scale, states);
    }

    private void OutputOnWarpgroups(
        AttentionPass pass, AttentionOperand q, AttentionOperand k, AttentionOperand v, double keyScale, double outputScale, nint entering, bool transposed, Tensor output)
    {
        AttentionRun run = pass.Run;
        string kernel = (IsWide(q), IsWide(v)) switch
        {
            (false, false) => "linear_attention_output_64_64",
            (false, true) => "linear_attention_output_64_128",
            (true, false) => "linear_attention_output_128_64",
            (true, true) => "linear_attention_output_128_128",
        };
        long perMultiprocessor = IsWide(q) || IsWide(v) ? 1 : 2, shared = StagedBytes((200 << 10) / perMultiprocessor, (2 * FilledWidth(q)) + FilledWidth(v), (FilledWidth(v) * ColumnBytes) + (6 << 10));
        Launch(
            OutputWarpgroupsFile, kernel, pass.Element, Blocks(run.Segments * run.Batches * q.Heads, Warpgroup * (IsWide(v) ? 3u : 2u), shared),
            q.Pointer, k.Pointer, v.Pointer, pass.Decay.Pointer, (int)pass.Decay.Kind, run.Tokens, q.Heads, k.Heads, q.Width, v.Width, run.Batches,
            run.SegmentTokens, SegmentRows(run), pass.Direction, (float)keyScale, (float)outputScale, entering, transposed ? 1 : 0, output.Pointer);
    }

    /// <summary>
    /// dk and dv in one walk, for as many key heads as heads; <paramref name="leaving"/> [segments, B, H, D, E]: the gradients of the states that leave the segments. With the chunks'
    /// <paramref name="states"/> it also fills their <paramref name="sums"/>.
    /// </summary>
    private void KeyValueOnWarpgroups(AttentionPass pass, Tensor q, Tensor k, Tensor v, Tensor dO, double scale, nint leaving, Tensor dk, Tensor dv, nint states = 0, nint sums = 0)
    {
        AttentionRun run = pass.Run;
        AttentionOperand queries = AttentionOperand.Of(q), values = AttentionOperand.Of(v);
        string kernel = (states != 0, IsWide(queries), IsWide(values)) switch
        {
            (false, false, false) => "linear_attention_bwd_key_value_64_64",
            (false, false, true) => "linear_attention_bwd_key_value_64_128",
            (false, true, false) => "linear_attention_bwd_key_value_128_64",
            (false, true, true) => "linear_attention_bwd_key_value_128_128",
            (true, false, false) => "linear_attention_bwd_key_value_paths_64_64",
            (true, false, true) => "linear_attention_bwd_key_value_paths_64_128",
            (true, true, false) => "linear_attention_bwd_key_value_paths_128_64",
            (true, true, true) => "linear_attention_bwd_key_value_paths_128_128",
        };
        long width = FilledWidth(queries), valueWidth = FilledWidth(values), copy = width * valueWidth * 2, tables = IsWide(queries) && IsWide(values) ? 3 << 10 : 6 << 10;
        LaunchShape shape = Blocks(run.Segments * run.Batches * run.Heads, 3 * Warpgroup, StagedBytes(192 << 10, 2 * (width + valueWidth), copy + tables));
        ReadOnlySpan<KernelArg> arguments =
        [
            q.Pointer, k.Pointer, v.Pointer, dO.Pointer, pass.Decay.Pointer, (int)pass.Decay.Kind, run.Tokens, run.Heads, run.KeyWidth, run.ValueWidth, run.Batches,
            run.SegmentTokens, SegmentRows(run), (float)scale, leaving, dk.Pointer, dv.Pointer, states, sums,
        ];
        if (states == 0) Launch(KeyValueWarpgroupsFile, kernel, pass.Element, shape, arguments[..^2]);
        else Launch(KeyValuePathsFile, kernel, pass.Element, shape, arguments);
    }
}
