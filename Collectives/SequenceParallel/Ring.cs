using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// Ring Attention (arXiv 2310.01889) for linear attention: K and V pass every rank and no state is formed, the baseline that the papers compare with. Causal.
///   forward    o = own chunk;  per block of an earlier rank  o_i += scale sum_j ((wq_i q_i) . (wk_j k_j)) v_j   with wq_i = exp(G_i), wk_j = exp(G_C - G_j) x A of the ranks between
///   backward   K, V pass again; dq stays; dK, dV (and the decay's gradient, where it is per token) ride one step behind their block and come home with the last hop
/// Left products: work and time grow with N^2 / W. Blocks of later ranks pass too and are not read; every rank sends W-1 hops of K, V (and the decay per token or channel),
/// backward W hops of their gradients in fp32 and, for such a decay, one reduce-scatter of [B, H(, D)] per rank for the paths that pass over ranks.
/// With documents only the first piece of a chunk reads other ranks' blocks, and of a block only its last piece, if that is the same document.
/// A final state is what D further queries at the document's end would read, so that it needs no passage of its own; an initial state has no block to travel in and is refused.
/// The first hop starts in Begin; each further hop starts before the block that has arrived is computed on.
/// In bf16 the products of other ranks' blocks are summed in fp32 on top of the own chunk's result, and rounded once more.
/// </summary>
public sealed class Ring : SequenceParallel
{
    public static Ring Default { get; } = new();

    public override string Name => "ring";

    public override (long Forward, long Backward) PredictedBytesSent(AttentionCall call, Tensor? decay)
    {
        ArgumentNullException.ThrowIfNull(call);
        (int size, int rank) = (call.Group.Size, call.Group.Rank);
        if (size == 1) return (0, 0);
        long accumulator = call.DType.Accumulator().Size(), factor = decay is { Shape.Rank: > 1 } ? call.FactorShape(decay).Count * accumulator : 0; // of one position, all rows of the batch
        long keyValue = call.Batch * call.KeyHeads * (call.KeyDim + call.ValueDim);
        long passing = call.Partition.Tokens - call.Partition.Length((rank + 1) % size); // all blocks but the next rank's
        long forward = passing * (keyValue * call.DType.Size() + factor);
        return (forward, forward + call.Partition.Tokens * (keyValue * accumulator + factor) + (size - 1) * factor);
    }

    internal override AttentionExchange Begin(AttentionCall call, SavedValue k, SavedValue v, Tensor? decay, Tensor? initialState)
    {
        if (!call.Causal) throw new LaspException($"strategy {Name} is causal only; bidirectional attention runs with lasp2");
        if (initialState is not null) throw new LaspException($"strategy {Name} passes no state and takes no initial_state; leave it out, or use lasp1, lasp2, zeco or ulysses");
        return call.Group.Size == 1 ? new Serial.Exchange(call, k, v, decay, initialState) : new Exchange(call, k, v, decay);
    }

    private sealed class Exchange : AttentionExchange
    {
        private RingHop? _block; // K, V (and decay) on their way here
        private RingHop? _gradient; // dK, dV (and dDecay) on their way here
        private RingDecayGradient? _dDecay;

        public Exchange(AttentionCall call, SavedValue k, SavedValue v, Tensor? decay) : base(call, k, v, decay, initialState: null) => _block = SendOwnBlock();

        private bool DecayTravels => Decay is { Shape.Rank: > 1 };

        /// <summary>This rank's piece of a document that began on an earlier rank, which alone reads other ranks' blocks.</summary>
        private DocumentPiece? ReadingPiece => Call.PiecesOf(Call.Group.Rank) is [{ IsFirst: false } first, ..] ? first : null;

        private RingHop SendOwnBlock() => RingHop.Start(Call, Call.Group.Rank, DecayTravels ? [K.Share(), V.Share(), Decay!.Share()] : [K.Share(), V.Share()]);

        public override void Finish(Tensor q, Tensor o, Tensor? finalState)
        {
            Runs.Forward(q, entering: null, o, finalState);
            using RingReaders readers = new(Call, Decay, ReadingPiece, q, withEnd: finalState is not null);
            Tensor[] sums = [.. readers.All.Select(r => Zeros(r.OutputShape))];
            PassBlocks((_, block) =>
            {
                if (block is null) return;
                foreach ((RingReader reader, Tensor sum) in readers.All.Zip(sums))
                    Backend.LinearAttentionBlock(reader.Q, block.K, block.V, reader.Weights, block.Weights, reader.Scale, sum);
            });
            foreach ((RingReader reader, Tensor sum) in readers.All.Zip(sums)) reader.AddResult(sum, o, finalState);
            foreach (Tensor sum in sums) sum.Dispose();
        }

        public override void BackwardFinish(Tensor q, Tensor dO, Tensor? dFinalState, Tensor dq, bool continues)
        {
            _block = SendOwnBlock();
            Runs.BackwardQuery(q: null, dO, entering: null, dq);
            if (continues) SendOwnGradients(q, dO, dFinalState);
            using RingReaders readers = new(Call, Decay, ReadingPiece, q, withEnd: continues && dFinalState is not null);
            using Tensor dQuery = Zeros(readers.Tokens?.Q.Shape ?? [0]);
            Tensor[] gradients = [.. readers.All.Select(r => r.OutputGradient(dO, dFinalState))];
            PassBlocks((rank, block) =>
            {
                RingTensors? riding = continues ? TakeGradient() : null;
                if (block is not null) BackwardBlock(block, readers, gradients, dQuery, riding);
                if (riding is not null) _gradient = RingHop.Start(Call, rank, riding.TakeOver());
            });
            readers.Tokens?.AddResult(dQuery, dq, finalState: null);
            foreach (Tensor gradient in gradients) gradient.Dispose();
            if (continues) _dDecay?.SendCrossings();
        }

        public override void BackwardBegin(Tensor dk, Tensor dv, Tensor? dDecay, Tensor? dInitialState)
        {
            using RingTensors home = TakeGradient();
            Backend.Cast(home[0], dk);
            Backend.Cast(home[1], dv);
            if (dDecay is not null) _dDecay!.Write(DecayTravels ? home[2] : null, ReadingPiece, dDecay);
        }

        /// <summary>Starts the ride of this rank's dK, dV (and dDecay) with what its own chunk gives.</summary>
        private void SendOwnGradients(Tensor q, Tensor dO, Tensor? dFinalState)
        {
            using Tensor dk = Empty(K.Shape, K.DType), dv = Empty(V.Shape, V.DType);
            Runs.BackwardKeyValue(q, dO, leaving: null, dFinalState, dk, dv);
            List<Tensor> riding = [Empty(K.Shape, Accumulator), Empty(V.Shape, Accumulator)];
            Backend.Cast(dk, riding[0]);
            Backend.Cast(dv, riding[1]);
            if (Decay is not null)
            {
                _dDecay = new RingDecayGradient(Call, Decay);
                Tensor own = DecayTravels ? Empty(Decay.Shape, Accumulator) : _dDecay.Own.Share();
                Runs.BackwardDecay(q, dO, entering: null, leaving: null, dFinalState, own);
                if (DecayTravels) riding.Add(own);
                else own.Dispose();
            }
            _gradient = RingHop.Start(Call, Call.Group.Rank, [.. riding]);
        }

        /// <summary>One block's gradients: dq into <paramref name="dQuery"/>, dK, dV and its part of the decay's gradient into what rides with it, this rank's part into its own.</summary>
        private void BackwardBlock(RingBlock block, RingReaders readers, Tensor[] gradients, Tensor dQuery, RingTensors? riding)
        {
            using Tensor dk = Zeros([Call.Batch, block.Piece.Length, Call.Heads, Call.KeyDim]), dv = Zeros([Call.Batch, block.Piece.Length, Call.Heads, Call.ValueDim]);
            foreach ((RingReader reader, Tensor gradient) in readers.All.Zip(gradients))
            {
                using Tensor dq = Zeros(reader.Q.Shape);
                Backend.LinearAttentionBlockBackward(reader.Q, block.K, block.V, gradient, reader.Weights, block.Weights, reader.Scale, dq, dk, dv);
                if (!reader.AtEnd) Backend.AddScaled(dq, 1, dQuery);
                if (riding is not null) _dDecay?.AddReading(reader, dq, block.Rank);
            }
            if (riding is null) return;
            AddHeads(dk, riding[0], block.Piece);
            AddHeads(dv, riding[1], block.Piece);
            if (_dDecay is null) return;
            using Tensor target = DecayTravels ? LocalRuns.Tokens(riding[2], block.Piece) : _dDecay.Own.Share();
            Backend.AddDecayPaths(block.K, dk, fromEntry: false, target);
        }

        /// <summary>Adds the query heads of each group, in order, to the tokens of a piece in [B, M, Hk, .].</summary>
        private void AddHeads(Tensor perQueryHead, Tensor sum, DocumentPiece piece)
        {
            using Tensor target = LocalRuns.Tokens(sum, piece);
            long group = Call.Heads / Call.KeyHeads, width = sum.Shape[3], rows = target.Count / Math.Max(1, width);
            using Tensor members = perQueryHead.View([rows, group, width]), byMember = Empty([group, rows, width], Accumulator);
            Backend.Permute(members, [1, 0, 2], byMember);
            for (int member = 0; member < group; member++)
            {
                using Tensor one = byMember.Slice(member, 1);
                Backend.AddScaled(one, 1, target);
            }
        }

        /// <summary>Lets every other rank's block pass, nearest earlier rank first, and shows what is visible of it to <paramref name="visit"/> (null: nothing) while the next one travels.</summary>
        private void PassBlocks(Action<int, RingBlock?> visit)
        {
            int size = Call.Group.Size;
            using RingReach reach = new(Call, Decay, ReadingPiece);
            for (int hop = 1; hop < size; hop++)
            {
                int rank = (Call.Group.Rank - hop + size) % size;
                using RingTensors arrived = TakeBlock();
                if (hop + 1 < size) _block = RingHop.Start(Call, rank, arrived.Share());
                using RingBlock? block = reach.Next(rank, arrived);
                visit(rank, block);
            }
        }

        private RingTensors TakeBlock()
        {
            RingHop hop = _block!;
            _block = null;
            return hop.Wait();
        }

        private RingTensors TakeGradient()
        {
            RingHop hop = _gradient!;
            _gradient = null;
            return hop.Wait();
        }

        private DType Accumulator => Call.DType.Accumulator();

        private Tensor Empty(Shape shape, DType dtype) => Tensor.Empty(shape, dtype, Call.Device);

        private Tensor Zeros(Shape shape) => Tensor.Zeros(shape, Accumulator, Call.Device);

        protected override void Abandon()
        {
            _block?.Dispose();
            _gradient?.Dispose();
            _dDecay?.Dispose();
            (_block, _gradient, _dDecay) = (null, null, null);
        }
    }
}
