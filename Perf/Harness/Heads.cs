using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>Single heads of [1, N, H, ...] tensors on the host in fp64, and how far two such are apart.</summary>
internal static class Heads
{
    /// <summary>The named heads of a tensor [1, N, H] or [1, N, H, D], each [N, 1|D].</summary>
    public static double[][] Of(Tensor tensor, IReadOnlyList<int> heads)
    {
        (long tokens, long count, long width) = (tensor.Shape[1], tensor.Shape[2], tensor.Shape.Rank == 4 ? tensor.Shape[3] : 1);
        using Tensor rows = tensor.View([tokens, count, width]);
        using Tensor byHead = Tensor.Empty([count, tokens, width], tensor.DType, tensor.Device, MemoryCategory.Workspace);
        tensor.Device.Backend.Permute(rows, [1, 0, 2], byHead);
        return [.. heads.Select(h => Row(byHead, h))];
    }

    /// <summary>The named heads of states [1, H, D, E], each [D, E].</summary>
    public static double[][] OfStates(Tensor states, IReadOnlyList<int> heads)
    {
        using Tensor rows = states.View([states.Shape[1], states.Shape[2], states.Shape[3]]);
        return [.. heads.Select(h => Row(rows, h))];
    }

    /// <summary>||actual - expected|| / ||expected||, over all heads together; NaN where anything is NaN.</summary>
    public static double RelativeError(IReadOnlyList<double[]> actual, IReadOnlyList<double[]> expected)
    {
        double difference = 0, norm = 0;
        for (int h = 0; h < actual.Count; h++)
        {
            if (actual[h].Length != expected[h].Length) throw new LaspException($"{actual[h].Length} values were computed where the reference has {expected[h].Length}");
            for (int i = 0; i < actual[h].Length; i++)
            {
                double d = actual[h][i] - expected[h][i];
                difference += d * d;
                norm += expected[h][i] * expected[h][i];
            }
        }
        return Math.Sqrt(difference / norm);
    }

    private static double[] Row(Tensor rows, int index)
    {
        using Tensor row = rows.Slice(index, 1);
        return row.ToDoubles();
    }
}
