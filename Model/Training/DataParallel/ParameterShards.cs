using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// A model's parameters in flat units, of which each rank updates its own shard. Stages 1 and 2 keep the whole units, and all-gather them in place after every update
/// (<see cref="PublishReadFirst"/>), in the order in which the next forward pass reads them; where long messages take nothing from what is computed (<see cref="ICommunicator.LeavesComputeAlone"/>)
/// it waits for each where it comes to it, elsewhere for all at once. Stage 3 keeps the shard alone: a block is gathered ahead of its use, while the block before it computes, in forward and again in backward, and freed after;
/// the parameters outside the blocks stay from the step's start to its end, the last block from forward into backward. On top of its shards a rank then holds at most those and two blocks.
/// </summary>
internal sealed class ParameterShards : IParameterResidency, IDisposable
{
    private enum Presence
    {
        Away,
        Coming,
        Here,
    }

    /// <param name="firstReader">Of the parameters in it, as <see cref="ParameterOrder.FirstReader"/> counts.</param>
    private sealed class Unit(FlatBucket layout, int rank, int firstReader, Tensor flat, Tensor shard)
    {
        public int FirstReader { get; } = firstReader;

        public FlatBucket Layout { get; } = layout;

        /// <summary>The parts of parameters that lie in the shard.</summary>
        public FlatSegment[] Segments { get; } = [.. layout.SegmentsOf(rank)];

        /// <summary>[Length]; the parameters' values are views of it.</summary>
        public Tensor Flat { get; } = flat;

        /// <summary>[ShardLength] of this rank: a view of Flat, in stage 3 memory of its own.</summary>
        public Tensor Shard { get; } = shard;

        public Presence Presence { get; set; } = Presence.Here;

        public CommunicationWork? Gather { get; set; }
    }

    private readonly ICommunicator _group;
    private readonly ICommunicator _background;
    private readonly bool _isDivided;
    private readonly bool _isLate; // whether whole parameters are waited for when they are read
    private readonly int _blocks;
    private readonly Queue<Unit> _coming = new(); // stages 1 and 2
    private readonly CommunicationWork[] _works; // of those that are waited for
    private readonly Unit[] _units;
    private readonly Unit[] _readFirst; // those of ReadFirst
    private readonly Unit[] _others; // in the order in which the model reads them, where it waits for each
    private readonly List<NamedParameter> _segments = [];
    private readonly Dictionary<string, (FlatBucket Layout, FlatPiece Piece)> _places = new(StringComparer.Ordinal);

    /// <param name="layouts">Stage 3: those of <see cref="Blocks"/>.</param>
    /// <param name="order">In which the model reads what the layouts hold.</param>
    /// <param name="group">Of what is waited for at once.</param>
    /// <param name="background">The same ranks: of what has time, in stages 1 and 2, where it leaves what is computed alone.</param>
    public ParameterShards(IReadOnlyList<FlatBucket> layouts, ParameterOrder order, ICommunicator group, ICommunicator background, ZeroStage stage)
    {
        (_group, _background, _isDivided) = (group, background, stage == ZeroStage.Parameters);
        _isLate = !_isDivided && background.LeavesComputeAlone;
        _blocks = order.Blocks.Count;
        _units = [.. layouts.Select(layout => Lay(layout, layout.Pieces.Min(p => order.FirstReader(p.Parameter))))];
        _works = new CommunicationWork[_units.Length];
        foreach (Unit unit in _units)
        {
            foreach (FlatPiece piece in unit.Layout.Pieces) _places.Add(piece.Parameter.Name, (unit.Layout, piece));
            foreach (FlatSegment segment in unit.Segments)
                _segments.Add(segment.Parameter with { Variable = Variable.Parameter(unit.Shard.Slice(segment.Start, segment.Count)) });
            if (_isDivided) Free(unit);
        }
        bool ComesFirst(Unit unit) => _isLate && unit.FirstReader <= 0;
        _readFirst = [.. _units.Where(ComesFirst).OrderBy(u => u.FirstReader)];
        _others = !_isLate ? _units : [.. _units.Where(u => !ComesFirst(u)).OrderBy(u => u.FirstReader)];
        ReadFirst = _units.TakeWhile(u => !ComesFirst(u)).Sum(u => u.Segments.Length)..;
    }

    /// <summary>
    /// The parts of parameters that this rank updates, flat, under the parameters' names: what its optimizer knows. Each parameter has at most one part on a rank.
    /// </summary>
    public IReadOnlyList<NamedParameter> Segments => _segments;

    /// <summary>The blocks of a model from the last to the first, then what lies outside of them: the order in which backward completes their gradients, but that some of the first block's may wait for the embedding's (<see cref="Tape.PostponeParameters"/>).</summary>
    public static IReadOnlyList<FlatBucket> Blocks(ParameterOrder order, int ranks) =>
        [.. order.Blocks.Reverse().Append(order.Outside).Select(parameters => new FlatBucket(parameters, ranks))];

    /// <summary>Where a parameter lies in the shard of a rank; null when none of it does.</summary>
    public FlatSegment? SegmentOf(string parameter, int rank)
    {
        (FlatBucket layout, FlatPiece piece) = _places[parameter];
        return layout.SegmentOf(piece, rank);
    }

    /// <summary>Gives each segment its part of the summed gradients.</summary>
    public void TakeGradients(GradientBuckets gradients)
    {
        BringAll(); // what is about to be updated must not be on its way from the last update
        int next = 0;
        for (int i = 0; i < _units.Length; i++)
        {
            using Tensor sum = gradients.TakeShard(i);
            foreach (FlatSegment segment in _units[i].Segments)
                _segments[next++].Variable.PutGradient(sum.Slice(segment.Start, segment.Count));
        }
    }

    /// <summary>
    /// Those of <see cref="Segments"/> that are best updated and published before the others, for the model reads them before its blocks or in the first: the last. Empty where all are waited for at once.
    /// </summary>
    public Range ReadFirst { get; }

    /// <summary>Call when the segments of <see cref="ReadFirst"/> are updated, and <see cref="PublishOthers"/> when all are: whole parameters become what the ranks made of their shards.</summary>
    public void PublishReadFirst() => Publish(_readFirst, _background);

    /// <inheritdoc cref="PublishReadFirst"/>
    public void PublishOthers()
    {
        if (_isDivided) return; // the next step gathers them
        Publish(_others, _isLate ? _background : _group);
        if (!_isLate) BringAll();
    }

    /// <summary>Each is whole when the model reads it, or <see cref="BringAll"/> was called.</summary>
    private void Publish(Unit[] units, ICommunicator group)
    {
        foreach (Unit unit in units)
        {
            unit.Gather = group.AllGather(unit.Shard, unit.Flat);
            _coming.Enqueue(unit);
        }
    }

    /// <summary>Waits for what is on its way.</summary>
    public void BringAll() => BringUpTo(_blocks);

    private void BringUpTo(int block)
    {
        int count = 0;
        while (_coming.TryPeek(out Unit? next) && next.FirstReader <= block)
        {
            (_works[count++], next.Gather) = (next.Gather!, null);
            _coming.Dequeue();
        }
        (_isLate ? _background : _group).Wait(_works.AsSpan(0, count));
        _works.AsSpan(0, count).Clear();
    }

    public void EnterModel(Variable ids)
    {
        if (!_isDivided)
        {
            BringUpTo(ParameterOrder.BeforeBlocks);
            return;
        }
        Unit outside = _units[^1];
        Bring(outside);
        Tape.WhenBackward(ids, () => Free(outside));
    }

    public void EnterBlock(int block, Variable stream)
    {
        if (!_isDivided)
        {
            BringUpTo(block);
            return;
        }
        Tape.WhenBackward(stream, () => Free(UnitOf(block)!));
        Bring(UnitOf(block)!);
        Fetch(UnitOf(block + 1));
    }

    public void LeaveBlock(int block, Variable stream)
    {
        if (!_isDivided)
        {
            if (block == _blocks - 1) BringAll();
            return;
        }
        if (UnitOf(block + 1) is not null) Free(UnitOf(block)!);
        Tape.WhenBackward(stream, () =>
        {
            Bring(UnitOf(block)!);
            Fetch(UnitOf(block - 1));
        });
    }

    /// <summary>Blocks come from the last to the first, what is outside of them after.</summary>
    private Unit? UnitOf(int block) => block >= 0 && block <= _units.Length - 2 ? _units[_units.Length - 2 - block] : null;

    private void Fetch(Unit? unit)
    {
        if (unit is not { Presence: Presence.Away }) return;
        unit.Flat.RestoreMemory();
        unit.Gather = _group.AllGather(unit.Shard, unit.Flat);
        unit.Presence = Presence.Coming;
    }

    private void Bring(Unit unit)
    {
        Fetch(unit);
        if (unit.Presence == Presence.Coming) unit.Gather!.Wait();
        (unit.Gather, unit.Presence) = (null, Presence.Here);
    }

    private static void Free(Unit unit)
    {
        unit.Flat.EvictMemory();
        unit.Presence = Presence.Away;
    }

    /// <summary>Moves the parameters of a unit into one flat tensor.</summary>
    private Unit Lay(FlatBucket layout, int firstReader)
    {
        Tensor first = layout.Pieces[0].Parameter.Variable.Value;
        Tensor flat = Tensor.Zeros([layout.Length], first.DType, first.Device, MemoryCategory.Parameters);
        foreach (FlatPiece piece in layout.Pieces)
        {
            Variable variable = piece.Parameter.Variable;
            using Tensor place = flat.Slice(piece.Start, piece.Count);
            flat.Device.Copy(variable.Value.Pointer, place.Pointer, place.Bytes);
            variable.ReplaceValue(place.View(variable.Shape));
        }
        using Tensor own = flat.Slice(_group.Rank * layout.ShardLength, layout.ShardLength);
        if (!_isDivided) return new Unit(layout, _group.Rank, firstReader, flat, own.Share());
        Tensor shard = Tensor.Empty(own.Shape, own.DType, own.Device, MemoryCategory.Parameters);
        flat.Device.Copy(own.Pointer, shard.Pointer, own.Bytes);
        return new Unit(layout, _group.Rank, firstReader, flat, shard);
    }

    public void Dispose()
    {
        try
        {
            BringAll();
        }
        catch (LaspException)
        {
            // A rank has failed, and that has been told.
        }
        foreach (NamedParameter segment in _segments) segment.Variable.Dispose();
        foreach (Unit unit in _units)
        {
            unit.Shard.Dispose();
            unit.Flat.Dispose();
        }
    }
}
