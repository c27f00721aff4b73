namespace LaspNative.Runtime.Cuda;

/// <summary>
/// A bound for what the gradients of a decay per channel keep, and that of a decay per token asked for by itself: states of all chunks, of which a long run has many. A single long row is walked in
/// ranges of segments, one after another, each entered by a state and left by a gradient as a rank is, from the last to the first where what leaves the segments is found on the way; many rows are
/// taken in groups. The states of the segments, a 256th of those of the chunks, are held for the whole run.
/// </summary>
internal sealed partial class CudaBackend
{
    /// <summary>
    /// Tokens times heads whose chunks have their states in the workspace at a time: 1 GiB in each direction. It is 131072 tokens of 16 heads, whose segments fill a GPU for long enough that a
    /// range more costs nothing: 16384 tokens on each multiprocessor.
    /// </summary>
    internal long HeadTokensAtOnce { get; set; } = 1L << 21;

    private bool FitsAtOnce(AttentionRun run) => run.Batches * run.Tokens * run.Heads <= HeadTokensAtOnce;

    /// <summary>What the gradients read and write, as pointers, so that a part of the tokens is a call as well; those that are 0 are not given or not asked for. A decay's gradient is shaped like the decay.</summary>
    private readonly record struct GradientCall(AttentionPass Pass, AttentionOperand Q, AttentionOperand K, AttentionOperand V, AttentionOperand OutputGradient, double Scale)
    {
        public nint InitialState { get; init; }

        public nint FinalStateGradient { get; init; }

        public AttentionOperand QueryGradient { get; init; }

        public AttentionOperand KeyGradient { get; init; }

        public AttentionOperand ValueGradient { get; init; }

        public nint DecayGradient { get; init; }

        public AttentionRun Run => Pass.Run;

        public AttentionPass Forward => Pass with { Reverse = false };

        public AttentionPass Backward => Pass with { Reverse = true };

        public static GradientCall Of(AttentionPass pass, Tensor? q, Tensor k, Tensor v, Tensor dO, Tensor? initialState, Tensor? dFinalState, double scale) =>
            new(pass, AttentionOperand.OrNone(q), AttentionOperand.Of(k), AttentionOperand.Of(v), AttentionOperand.Of(dO), scale)
            {
                InitialState = PointerOrNull(initialState),
                FinalStateGradient = PointerOrNull(dFinalState),
            };

        public GradientCall Gives(Tensor? dq, Tensor? dk, Tensor? dv, Tensor? dDecay) => this with
        {
            QueryGradient = AttentionOperand.OrNone(dq),
            KeyGradient = AttentionOperand.OrNone(dk),
            ValueGradient = AttentionOperand.OrNone(dv),
            DecayGradient = PointerOrNull(dDecay),
        };

        /// <summary>One of the run's ranges.</summary>
        public GradientCall Range(long index) => Part(Run.Range(index), Run.RangeStart(index));

        /// <summary>Some rows, cut anew.</summary>
        public GradientCall Rows(AttentionRun rows, long first)
        {
            nint edge = (nint)(first * rows.Heads * rows.KeyWidth * rows.ValueWidth * sizeof(float));
            return Part(rows, first * Run.Tokens) with { InitialState = Behind(InitialState, edge), FinalStateGradient = Behind(FinalStateGradient, edge) };
        }

        private GradientCall Part(AttentionRun run, long token)
        {
            int bytes = Pass.Element.Size();
            nint decays = (nint)(token * run.Heads * Pass.Decay.Channels(run) * sizeof(float));
            return this with
            {
                Pass = Pass with { Run = run, Decay = Pass.Decay with { Pointer = Pass.Decay.Pointer + decays } },
                Q = Q.From(token, bytes),
                K = K.From(token, bytes),
                V = V.From(token, bytes),
                OutputGradient = OutputGradient.From(token, bytes),
                QueryGradient = QueryGradient.From(token, bytes),
                KeyGradient = KeyGradient.From(token, bytes),
                ValueGradient = ValueGradient.From(token, bytes),
                DecayGradient = Behind(DecayGradient, decays),
            };
        }

        private static nint Behind(nint pointer, nint bytes) => pointer == 0 ? 0 : pointer + bytes;
    }

    /// <summary>Whether a call has too many rows to be taken at once.</summary>
    private bool IsForGroups(AttentionRun run) => run.Batches > 1 && !FitsAtOnce(run);

    /// <summary>The groups of rows in which such a call is taken. Segments that its caller keeps are of another cut.</summary>
    private IEnumerable<GradientCall> GroupsOf(GradientCall call)
    {
        AttentionRun run = call.Run;
        long rows = Math.Max(1, HeadTokensAtOnce / (run.Tokens * run.Heads));
        for (long row = 0; row < run.Batches; row += rows) yield return call.Rows(Cut(run with { Batches = Math.Min(rows, run.Batches - row) }), row);
    }
}
