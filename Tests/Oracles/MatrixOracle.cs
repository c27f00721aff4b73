namespace LaspNative.Tests.Oracles;

/// <summary>Matrix products, embeddings, cross-entropy and AdamW in fp64.</summary>
public static class MatrixOracle
{
    /// <summary>alpha op(a) op(b) + beta c over g matrices; a is [M,K] or, transposed, [K,M]; b [K,N] or [N,K].</summary>
    public static double[] Gemm(double[] a, bool transposeA, double[] b, bool transposeB, double alpha, double beta, double[] c, int g, int m, int n, int k)
    {
        var result = new double[g * m * n];
        for (int i = 0; i < result.Length; i++)
        {
            (int batch, int row, int column) = (i / (m * n), i / n % m, i % n);
            double sum = 0;
            for (int p = 0; p < k; p++)
                sum += a[batch * m * k + (transposeA ? p * m + row : row * k + p)] * b[batch * k * n + (transposeB ? column * k + p : p * n + column)];
            result[i] = alpha * sum + (beta == 0 ? 0 : beta * c[i]);
        }
        return result;
    }

    public static double[] Embedding(long[] ids, double[] table, int width)
    {
        var y = new double[ids.Length * width];
        for (int i = 0; i < y.Length; i++)
        {
            long id = ids[i / width];
            if (id >= 0 && id < table.Length / width) y[i] = table[id * width + i % width];
        }
        return y;
    }

    /// <summary>dTable, from what it held before.</summary>
    public static double[] EmbeddingBackward(long[] ids, double[] dy, double[] before, int width)
    {
        double[] dTable = [.. before];
        for (int i = 0; i < dy.Length; i++)
        {
            long id = ids[i / width];
            if (id >= 0 && id < dTable.Length / width) dTable[id * width + i % width] += dy[i];
        }
        return dTable;
    }

    /// <summary>Losses [R] and scale * (softmax - onehot) [R, V]; a negative label gives zeros.</summary>
    public static (double[] Losses, double[] Gradient) CrossEntropy(double[] logits, long[] labels, int vocabulary, double scale)
    {
        var losses = new double[labels.Length];
        var gradient = new double[logits.Length];
        for (int r = 0; r < labels.Length; r++)
        {
            if (labels[r] < 0) continue;
            double[] row = logits[(r * vocabulary)..((r + 1) * vocabulary)];
            double max = row.Max();
            double logSum = max + Math.Log(row.Sum(z => Math.Exp(z - max)));
            losses[r] = logSum - row[labels[r]];
            for (int i = 0; i < vocabulary; i++) gradient[r * vocabulary + i] = scale * (Math.Exp(row[i] - logSum) - (i == labels[r] ? 1 : 0));
        }
        return (losses, gradient);
    }

    /// <summary>One AdamW update of one weight by its scaled gradient: (m, v, w) after it.</summary>
    public static (double M, double V, double W) AdamW(double g, Runtime.AdamWStep s, double weightDecay, double m, double v, double w)
    {
        m = s.Beta1 * m + (1 - s.Beta1) * g;
        v = s.Beta2 * v + (1 - s.Beta2) * g * g;
        double mHat = m / (1 - Math.Pow(s.Beta1, s.Step));
        double vHat = v / (1 - Math.Pow(s.Beta2, s.Step));
        return (m, v, w - s.LearningRate * (mHat / (Math.Sqrt(vHat) + s.Epsilon) + weightDecay * w));
    }
}
