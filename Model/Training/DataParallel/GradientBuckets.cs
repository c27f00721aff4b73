using LaspNative.Autograd;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// Sums gradients over the ranks, bucket by bucket, while backward goes on: each rank's pass saw only its own tokens. A bucket's message starts when the last of its gradients is
/// complete: every rank recorded the same functions, so all send the same messages in the same order. Per bucket of n elements (padding included), over R ranks:
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

    private sealed class Bucket(FlatBucket layout)
    {
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

    /// <param name="layouts">Best made of gradients that backward completes one after the other.</param>
    public GradientBuckets(IReadOnlyList<FlatBucket> layouts, ICommunicator group, ZeroStage stage)
    {
        (_group, _stage) = (group, stage);
        _buckets = group.Size == 1 ? [] : [.. layouts.Select(l => new Bucket(l))];
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
    /// </summary>
    public void Finish()
    {
        if (Array.Find(_buckets, b => b.Missing > 0) is { } late)
            throw new InvalidOperationException($"backward ended before the gradients of the bucket of '{late.Layout.Pieces[0].Parameter.Name}' were complete");
        int count = 0;
        while (_underWay.TryDequeue(out Bucket? bucket)) (_works[count++], bucket.Work) = (bucket.Work!, null);
        _group.Wait(_works.AsSpan(0, count));
        _works.AsSpan(0, count).Clear();
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

    private void Start(Bucket bucket)
    {
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
