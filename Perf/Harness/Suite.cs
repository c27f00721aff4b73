namespace LaspNative.Perf;

/// <summary>All problems of one GPU, in the order of the table.</summary>
internal static class Suite
{
    private const int Rows = 32_768;

    /// <param name="lengths">Tokens of the rows with a decay per head, and of softmax attention up to 32768.</param>
    public static IEnumerable<Problem> Problems(IReadOnlyList<int> lengths)
    {
        foreach (int tokens in lengths) yield return new LinearAttentionProblem(DecayKind.Head, tokens);
        foreach (DecayKind kind in (DecayKind[])[DecayKind.None, DecayKind.Token, DecayKind.Channel]) yield return new LinearAttentionProblem(kind, Rows);
        yield return new LinearAttentionProblem(DecayKind.Head, Rows, heads: 32, width: 64);
        yield return new LinearAttentionProblem(DecayKind.Channel, Rows, group: 4);
        foreach (int tokens in lengths.Where(n => n <= Rows))
        {
            yield return new SoftmaxProblem(tokens, heads: 32, keyHeads: 8);
            yield return new SoftmaxProblem(tokens, heads: 16, keyHeads: 16);
        }
        yield return new DecodeProblem(sequences: 128);
        foreach (LayerOp op in LayerOps.All) yield return new ElementwiseProblem(op, Rows);
    }
}
