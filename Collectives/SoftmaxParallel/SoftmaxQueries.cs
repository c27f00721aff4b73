using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// The queries that one rank computes, whatever tokens they are, against keys and values that come in blocks, in any order:
///   forward    (o, L) = partial softmax over the first block; then merged with each further block's by running maxima (L is the log-sum-exp)
///   backward   delta = sum_e o dO; every block adds its part of dq, and its own dk, dv, from L and delta of the whole row
/// Sums over blocks are fp32 (fp64) and rounded once. All strategies compute through this; they differ in which queries, which blocks, and how both get here.
/// </summary>
internal sealed class SoftmaxQueries : IDisposable
{
    private readonly SoftmaxCall _call;
    private readonly Tensor _q; // [B, C, H, D]
    private readonly QueryRanges _ranges;
    private Tensor? _o; // [B, C, H, E]
    private Tensor? _logSumExp; // [B, C, H]
    private Tensor? _dO; // [B, C, H, E]
    private Tensor? _delta; // [B, C, H]
    private Tensor? _dq; // [B, C, H, D], fp32

    /// <param name="q">The queries; taken over.</param>
    /// <param name="tokens">Which tokens they belong to.</param>
    public SoftmaxQueries(SoftmaxCall call, Tensor q, params ReadOnlySpan<TokenSpan> tokens)
    {
        (_call, _q) = (call, q);
        _ranges = new QueryRanges(call, tokens);
    }

    private IBackend Backend => _call.Device.Backend;

    private DType Accumulator => _call.DType.Accumulator();

    private Shape RowShape => [_q.Shape[0], _q.Shape[1], _q.Shape[2]];

    /// <summary>Takes a block of keys and values into the output.</summary>
    public void Attend(Tensor k, Tensor v, TokenSpan keys)
    {
        if (!_ranges.See(keys)) return;
        DType dtype = _ranges.LieWithin(keys) ? _call.DType : Accumulator;
        Tensor o = Tensor.Empty(_q.Shape.WithLast(v.Shape[3]), dtype, _call.Device);
        Tensor logSumExp = Tensor.Empty(RowShape, Accumulator, _call.Device);
        Backend.SoftmaxAttention(_q, k, v, _ranges.Values, keys.Start, _call.Scale, o, logSumExp);
        if (_o is null)
        {
            (_o, _logSumExp) = (o, logSumExp);
            return;
        }
        Backend.MergeSoftmax(o, logSumExp, _o, _logSumExp!);
        o.Dispose();
        logSumExp.Dispose();
    }

    /// <summary>o of all blocks, in the call's dtype; the caller owns it. Kept here too, for backward.</summary>
    public Tensor Output()
    {
        _o = _o is null ? Tensor.Zeros(_q.Shape.WithLast(_call.ValueDim), _call.DType, _call.Device) : _call.Round(_o);
        return _o.Share();
    }

    /// <summary>Starts the backward pass from the gradient of the output, which is taken over.</summary>
    public void StartBackward(Tensor dO)
    {
        _dO = dO;
        _delta = Tensor.Empty(RowShape, Accumulator, _call.Device);
        Backend.SoftmaxDelta(_o!, dO, _delta);
        _dq = Tensor.Zeros(_q.Shape, Accumulator, _call.Device);
    }

    /// <summary>Adds what passes through a block to dq, and to the block's dk and dv (fp32).</summary>
    public void AddGradients(Tensor k, Tensor v, TokenSpan keys, Tensor dk, Tensor dv)
    {
        if (_ranges.See(keys)) Backend.SoftmaxAttentionBackward(_q, k, v, _dO!, _logSumExp!, _delta!, _ranges.Values, keys.Start, _call.Scale, _dq!, dk, dv);
    }

    /// <summary>dq of all blocks, in the call's dtype; the caller owns it. Ends the backward pass.</summary>
    public Tensor QueryGradient()
    {
        Tensor dq = _call.Round(_dq!);
        _dq = null;
        return dq;
    }

    public void Dispose()
    {
        _q.Dispose();
        _ranges.Dispose();
        foreach (Tensor? tensor in (ReadOnlySpan<Tensor?>)[_o, _logSumExp, _dO, _delta, _dq]) tensor?.Dispose();
    }
}
