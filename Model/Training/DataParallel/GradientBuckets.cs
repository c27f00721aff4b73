using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// Sums gradients over the ranks, bucket by bucket, while backward goes on: each rank's pass saw only its own tokens. A bucket's message starts when the last of its gradients is
/// complete: every rank recorded the same functions, so all send the same messages in the same order. Messages bear no names, so that is made sure of: after the first pass the ranks tell one another their
/// orders, 4 bytes per bucket, and every later pass keeps to that of the first. Per bucket of n elements (padding included), over R ranks:
///   DDP      all-reduce      sends 2 (R-1)/R n x 4 bytes    every parameter keeps its whole gradient
///   ZeRO-1   reduce-scatter  sends (R-1)/R n x 4 bytes      the whole bucket stays until the step's end, the rank's shard of it holds the sum
///   ZeRO-2   reduce-scatter  sends (R-1)/R n x 4 bytes      only the shard outlives the bucket's message
/// (8 in place of 4 where gradients are fp64, 2 where those of the blocks are bf16.) The communicator decides the order of sums; on CPU it is the ranks' order for every stage, hence the same bits.
/// </summary>
internal sealed class GradientBuckets : IDisposable
{
    /// <summary>
    /// Buckets whose messages may be under way at once in ZeRO-2 and 3: before another starts, the oldest is waited for and its memory freed. With the one that is complete and about to start, three
    /// buckets are there at most, and one that is being filled past it (<see cref="FlatBucket.Cut"/>'s of short parameters; in stage 3 that of what is outside the blocks).
    /// </summary>
    private const int InFlight = 2;

    private sealed class Bucket(FlatBucket layout, int index)
    {
        public int Index { get; } = index;

        public FlatBucket Layout { get; } = layout;

        public int Missing { get; set; } = layout.Pieces.Count;

        public Tensor? Flat { get; set; }

        public Tensor? Shard { get; set; }

        public CommunicationWork? Work { get; set; }

        /// <summary>Whether whoever adds it up leaves the sum's squares.</summary>
        public bool LeavesSquares { get; set; }
    }

    private readonly ICommunicator _group;
    private readonly ZeroStage _stage;
    private readonly Bucket[] _buckets;
    private readonly Dictionary<Variable, (Bucket Bucket, FlatPiece Piece)> _places = [];
    private readonly Queue<Bucket> _underWay = new();
    private readonly CommunicationWork[] _works;
    private readonly Tensor[] _toSquare;
    private readonly int[] _order; // of messages: buckets by index, as the first pass has sent them
    private int _started; // messages of this pass
    private bool _isOrderKnown; // to be that of all ranks

    /// <param name="layouts">Best made of gradients that backward completes one after the other.</param>
    public GradientBuckets(IReadOnlyList<FlatBucket> layouts, ICommunicator group, ZeroStage stage)
    {
        (_group, _stage) = (group, stage);
        _buckets = group.Size == 1 ? [] : [.. layouts.Select((l, i) => new Bucket(l, i))];
        _order = new int[_buckets.Length];
        _works = new CommunicationWork[_buckets.Length];
        foreach (Bucket bucket in _buckets)
        {
            foreach (FlatPiece piece in bucket.Layout.Pieces)
            {
                _places.Add(piece.Parameter.Variable, (bucket, piece));
                piece.Parameter.Variable.GradientCompleted = Complete;
            }
        }
        _toSquare = new Tensor[_places.Count];
    }

    /// <summary>
    /// Plain data parallelism: parameters in reverse order, since backward completes the last layer first, in buckets of <paramref name="bytes"/> of gradients.
    /// </summary>
    public static GradientBuckets WholeOnEveryRank(IReadOnlyList<NamedParameter> parameters, ICommunicator group, long bytes) =>
        new(FlatBucket.Cut(parameters.Reverse(), bytes, ranks: 1), group, ZeroStage.None);

    /// <summary>
    /// Call once after backward, on every rank. Waits for what is in flight; then, undivided, every parameter's gradient is the sum, and divided, the sums are in <see cref="TakeShard"/>.
    /// The first time it throws <see cref="LaspException"/>, on every rank, where one has sent its gradients in another order; it reads back what they say, and so waits for the pass. Between
    /// GPUs it finds what has the same length: messages of different lengths, which nobody there compares, need not end.
    /// </summary>
    public void Finish()
    {
        if (Array.Find(_buckets, b => b.Missing > 0) is { } late)
            throw new InvalidOperationException($"backward ended before the gradients of the bucket of {NameOf(late)} were complete");
        int count = 0;
        while (_underWay.TryDequeue(out Bucket? bucket)) (_works[count++], bucket.Work) = (bucket.Work!, null);
        _group.Wait(_works.AsSpan(0, count));
        _works.AsSpan(0, count).Clear();
        _started = 0;
        if (!_isOrderKnown && _order.Length > 0) CompareOrders();
        foreach (Bucket bucket in _buckets)
        {
            if (_stage == ZeroStage.None) HandBack(bucket);
            bucket.Flat?.Dispose();
            (bucket.Flat, bucket.Missing) = (null, bucket.Layout.Pieces.Count);
        }
    }

    /// <summary>Whether each rank knows the squares of its own part of the gradients, rather than every rank those of all.</summary>
    public bool DivideSquares => _buckets.Length > 0 && (_stage != ZeroStage.None || Array.Exists(_buckets, b => b.LeavesSquares));

    /// <summary>
    /// sum = the sum of squares over this rank's part of the summed gradients, [1] in fp32 (fp64); over the ranks they add up to the whole gradient's. Call it where <see cref="DivideSquares"/>, behind
    /// <see cref="Finish"/> and before <see cref="TakeShard"/>. What this rank's kernels have added up has left its squares; the rest is read, by the first rank where all have it.
    /// </summary>
    public void SquaredNorm(Tensor sum)
    {
        _group.TakeSquares(sum);
        int count = 0;
        foreach (Bucket bucket in _buckets)
        {
            if (bucket.LeavesSquares) continue;
            if (bucket.Shard is { } shard) _toSquare[count++] = shard;
            else if (_group.Rank == 0)
                foreach (FlatPiece piece in bucket.Layout.Pieces) _toSquare[count++] = piece.Parameter.Variable.Gradient!;
        }
        if (count > 0) sum.Device.Backend.AddSumOfSquares(_toSquare.AsSpan(0, count), sum);
        _toSquare.AsSpan(0, count).Clear();
    }

    /// <summary>The rank's shard of a bucket's summed gradient, [ShardLength]; the caller's from here on.</summary>
    public Tensor TakeShard(int bucket)
    {
        Tensor shard = _buckets[bucket].Shard ?? throw new InvalidOperationException($"bucket {bucket} holds no summed gradient");
        _buckets[bucket].Shard = null;
        return shard;
    }

    /// <summary>Moves a parameter's finished gradient into its bucket.</summary>
    private void Complete(Variable variable)
    {
        (Bucket bucket, FlatPiece piece) = _places[variable];
        if (bucket.Missing == 0) throw new InvalidOperationException($"the gradient of '{piece.Parameter.Name}' is complete twice in one backward pass");
        using Tensor gradient = variable.DetachGradient() ?? throw new InvalidOperationException($"no gradient reached '{piece.Parameter.Name}'");
        if (bucket.Layout.Length == piece.Count && gradient.DType == bucket.Layout.GradientDType) bucket.Flat = gradient.View([piece.Count]);
        else Collect(gradient, piece, bucket);
        if (--bucket.Missing == 0) Start(bucket);
    }

    private static void Collect(Tensor gradient, FlatPiece piece, Bucket bucket)
    {
        FlatBucket layout = bucket.Layout;
        bucket.Flat ??= layout.Padding == 0
            ? Tensor.Empty([layout.Length], layout.GradientDType, gradient.Device, MemoryCategory.Gradients)
            : Tensor.Zeros([layout.Length], layout.GradientDType, gradient.Device, MemoryCategory.Gradients);
        if (gradient.DType == bucket.Flat.DType)
        {
            gradient.Device.Copy(gradient.Pointer, bucket.Flat.Pointer + (nint)(piece.Start * gradient.DType.Size()), gradient.Bytes);
            return;
        }
        using Tensor place = bucket.Flat.Slice(piece.Start, piece.Count);
        gradient.Device.Backend.Cast(gradient, place);
    }

    /// <summary>Before anything is sent out of turn, which another rank would add to whatever it sends in its place.</summary>
    private void TakeTurn(Bucket bucket)
    {
        ref int turn = ref _order[_started++];
        if (!_isOrderKnown) turn = bucket.Index;
        else if (turn != bucket.Index)
            throw new LaspException($"rank {_group.Rank} has the gradients of the bucket of {NameOf(bucket)} where the first pass, whose order all ranks keep to, had those of {NameOf(_buckets[turn])}; record the same functions in every step");
    }

    private void CompareOrders()
    {
        using Tensor own = Tensor.FromSpan(_order, [_order.Length], _group.Device, MemoryCategory.Workspace), all = Tensor.Empty([_group.Size, _order.Length], own.DType, own.Device, MemoryCategory.Workspace);
        _group.AllGather(own, all).Wait();
        int[] orders = all.ToArray<int>();
        for (int i = 0; i < orders.Length; i++)
        {
            Bucket sent = _buckets[orders[i]], first = _buckets[orders[i % _order.Length]];
            if (sent != first) throw new LaspException($"rank {i / _order.Length} has sent the gradients of the bucket of {NameOf(sent)} where rank 0 sent those of {NameOf(first)}, so that sums are wrong; record the same functions on every rank");
        }
        _isOrderKnown = true;
    }

    private static string NameOf(Bucket bucket) => $"'{bucket.Layout.Pieces[0].Parameter.Name}'";

    private void Start(Bucket bucket)
    {
        TakeTurn(bucket);
        Tensor flat = bucket.Flat!;
        bucket.LeavesSquares = _group.LeavesSquares(_stage == ZeroStage.None ? CollectiveKind.AllReduce : CollectiveKind.ReduceScatter, flat);
        if (_stage > ZeroStage.OptimizerStates)
            while (_underWay.Count >= InFlight) Release(_underWay.Dequeue());
        _underWay.Enqueue(bucket);
        if (_stage == ZeroStage.None)
        {
            bucket.Work = _group.AllReduce(flat);
            return;
        }
        long length = bucket.Layout.ShardLength;
        bucket.Shard = _stage == ZeroStage.OptimizerStates
            ? flat.Slice(_group.Rank * length, length)
            : Tensor.Empty([length], flat.DType, flat.Device, MemoryCategory.Gradients);
        bucket.Work = _group.ReduceScatter(flat, bucket.Shard);
    }

    private static void Release(Bucket bucket)
    {
        bucket.Work!.Wait();
        bucket.Work = null;
        bucket.Flat!.Dispose();
        bucket.Flat = null;
    }

    /// <summary>Each parameter's gradient becomes its part of the bucket's sum.</summary>
    private static void HandBack(Bucket bucket)
    {
        foreach (FlatPiece piece in bucket.Layout.Pieces) piece.Parameter.Variable.PutGradient(bucket.Flat!.Part(piece.Start, piece.Parameter.Variable.Shape));
    }

    public void Dispose()
    {
        foreach (Variable variable in _places.Keys) variable.GradientCompleted = null;
        foreach (Bucket bucket in _buckets)
        {
            bucket.Flat?.Dispose();
            bucket.Shard?.Dispose();
        }
    }
}
