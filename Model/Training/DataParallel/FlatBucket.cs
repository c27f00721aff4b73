using LaspNative.Autograd;
using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// Parameters laid end to end, as one message carries them and as ranks divide them: each starts at a multiple of <see cref="Alignment"/> elements, so that a kernel may read it in
/// place, and the length is a multiple of ranks x <see cref="Alignment"/>, so that all shards are equal. What fills the gaps is zero, and counted as padding.
/// </summary>
internal sealed class FlatBucket
{
    /// <summary>In elements: 128 bytes in fp32, 64 in bf16.</summary>
    public const int Alignment = 32;

    /// <param name="ranks">Among how many the bucket is divided; 1: not at all, and then nothing follows the last parameter.</param>
    public FlatBucket(IReadOnlyList<NamedParameter> parameters, int ranks)
    {
        var pieces = new FlatPiece[parameters.Count];
        long end = 0;
        for (int i = 0; i < pieces.Length; i++)
        {
            pieces[i] = new FlatPiece(parameters[i], RoundUp(end, Alignment));
            end = pieces[i].End;
        }
        Pieces = pieces;
        GradientDType = parameters.Select(p => p.Variable.GradientDType).MaxBy(t => t.Size());
        Ranks = ranks;
        Length = ranks == 1 ? end : RoundUp(end, (long)ranks * Alignment);
    }

    public IReadOnlyList<FlatPiece> Pieces { get; }

    public int Ranks { get; }

    /// <summary>What a message of these gradients is made of: the widest type that one of them is collected in.</summary>
    public DType GradientDType { get; }

    /// <summary>Elements with padding.</summary>
    public long Length { get; }

    /// <summary>Elements of one rank's shard with padding.</summary>
    public long ShardLength => Length / Ranks;

    /// <summary>Elements that belong to no parameter.</summary>
    public long Padding => Length - Pieces.Sum(p => p.Count);

    /// <summary>The parts of parameters that lie in a rank's shard.</summary>
    public IEnumerable<FlatSegment> SegmentsOf(int rank) => Pieces.Select(p => SegmentOf(p, rank)).OfType<FlatSegment>();

    /// <summary>The part of one parameter that lies in a rank's shard; null when there is none.</summary>
    public FlatSegment? SegmentOf(FlatPiece piece, int rank)
    {
        long shard = rank * ShardLength;
        long start = Math.Max(piece.Start, shard), end = Math.Min(piece.End, shard + ShardLength);
        return start < end ? new FlatSegment(piece.Parameter, start - piece.Start, start - shard, end - start) : null;
    }

    /// <summary>
    /// Cuts parameters, in the order given, into buckets whose gradients are of one type and take at most <paramref name="bytes"/>, where one parameter's alone do not exceed them. A parameter
    /// of a quarter of that or more has a bucket to itself: its gradient is the message as it lies, and is copied nowhere. Shorter ones are collected past it, because each message costs the products beside it
    /// more than its bytes: a model's norms are one. Buckets come in the order of their last parameters.
    /// </summary>
    public static IReadOnlyList<FlatBucket> Cut(IEnumerable<NamedParameter> parameters, long bytes, int ranks)
    {
        var buckets = new List<(int Last, FlatBucket Bucket)>();
        var current = new List<NamedParameter>();
        long filled = 0;
        int last = 0;
        foreach ((int index, NamedParameter parameter) in parameters.Index())
        {
            Variable variable = parameter.Variable;
            long size = variable.Shape.Count * variable.GradientDType.Size();
            if (size >= (bytes + 3) / 4)
            {
                buckets.Add((index, new FlatBucket([parameter], ranks)));
                continue;
            }
            if (current.Count > 0 && (filled + size > bytes || variable.GradientDType != current[0].Variable.GradientDType)) Close();
            current.Add(parameter);
            filled += size;
            last = index;
        }
        if (current.Count > 0) Close();
        return [.. buckets.OrderBy(b => b.Last).Select(b => b.Bucket)];

        void Close()
        {
            buckets.Add((last, new FlatBucket(current, ranks)));
            (current, filled) = ([], 0);
        }
    }

    private static long RoundUp(long value, long unit) => (value + unit - 1) / unit * unit;
}

/// <summary>A parameter's place in its bucket, in elements.</summary>
internal readonly record struct FlatPiece(NamedParameter Parameter, long Start)
{
    public long Count => Parameter.Variable.Shape.Count;

    public long End => Start + Count;
}

/// <summary>The part of a parameter that lies in one shard: elements [First, First + Count) of the parameter, at Start of the shard.</summary>
internal readonly record struct FlatSegment(NamedParameter Parameter, long First, long Start, long Count);
