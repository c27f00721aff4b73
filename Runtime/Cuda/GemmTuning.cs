namespace LaspNative.Runtime.Cuda;

/// <summary>Finds the fastest of several algorithms for a matrix product by running them on the compute stream.</summary>
internal static class GemmTuning
{
    /// <summary>Algorithms that are tried.</summary>
    public const int CandidateCount = 16;

    /// <summary>Products of fewer operations take the heuristic's word: 10 us on an H200, where launching counts as much as the algorithm.</summary>
    private const double LeastFlops = 8e9;

    /// <summary>Algorithms, beside the heuristic's own, that a first look leaves.</summary>
    private const int Finalists = 4;

    /// <summary>Milliseconds for which each finalist is looked at: a GPU that runs against its power limit needs some to show which algorithm spends least.</summary>
    private const double LookMilliseconds = 15;
    private const int LeastLooks = 3;
    private const int MostLooks = 25;

    /// <summary>
    /// How much faster than the heuristic's own algorithm another must be. Measured on an H200 (Perf/Records/matrix-products.md): what wins by less in turns loses up to 3% in a training step, where the GPU
    /// runs against its power limit; what wins by more keeps 4 to 7%.
    /// </summary>
    private const float LeastGain = 1.05f;

    /// <summary>Which algorithm to take, given the milliseconds of each, the heuristic's own first; null when none of them ran.</summary>
    public static int? Best(ReadOnlySpan<float> milliseconds)
    {
        int fastest = 0;
        for (int i = 1; i < milliseconds.Length; i++)
            if (milliseconds[i] < milliseconds[fastest]) fastest = i;
        if (!float.IsFinite(milliseconds[fastest])) return null;
        return milliseconds[fastest] * LeastGain <= milliseconds[0] ? fastest : 0;
    }

    public static bool Pays(GemmProblem problem) => problem.Flops >= LeastFlops;

    /// <summary>
    /// Milliseconds of every candidate; infinite for one that does not run. <paramref name="launch"/> queues one and says whether it could be queued. Finalists run in turns, so that the GPU's clocks
    /// treat them alike, and count by their median. Waits for all work of the device before and after: what a first launch loads must not queue behind a message that other ranks
    /// are still to answer.
    /// </summary>
    public static float[] Measure(CudaDevice device, int candidates, Func<int, bool> launch)
    {
        device.Synchronize();
        int[] all = [.. Enumerable.Range(0, candidates)];
        using var clock = new Clock(device, candidates);
        float[] first = clock.Time(all, launch);
        int[] finalists = [0, .. all.Skip(1).Where(i => float.IsFinite(first[i])).OrderBy(i => first[i]).Take(Finalists)];
        int count = (int)Math.Clamp(LookMilliseconds / first.Min(), LeastLooks, MostLooks);
        float[][] looks = [.. Enumerable.Range(0, count).Select(_ => clock.Time(finalists, launch))];
        var medians = new float[candidates];
        Array.Fill(medians, float.PositiveInfinity);
        foreach (int i in finalists) medians[i] = looks.Select(look => look[i]).Order().ElementAt(count / 2);
        return medians;
    }

    private sealed class Clock(CudaDevice device, int candidates) : IDisposable
    {
        private readonly CudaEvent[] _marks = [.. Enumerable.Range(0, 2 * candidates).Select(_ => new CudaEvent(device.Context, timing: true))];
        private readonly int _candidates = candidates;

        /// <summary>Runs each twice and times the second: the first one hides the host's part of the second.</summary>
        public float[] Time(int[] which, Func<int, bool> launch)
        {
            var milliseconds = new float[_candidates];
            Array.Fill(milliseconds, float.PositiveInfinity);
            int[] ran = [.. which.Where(i => Run(i, launch))];
            device.Stream.Synchronize();
            foreach (int i in ran) milliseconds[i] = CudaEvent.ElapsedMilliseconds(_marks[2 * i], _marks[(2 * i) + 1]);
            return milliseconds;
        }

        private bool Run(int i, Func<int, bool> launch)
        {
            if (!launch(i)) return false;
            _marks[2 * i].Record(device.Stream);
            bool again = launch(i);
            _marks[(2 * i) + 1].Record(device.Stream);
            return again;
        }

        public void Dispose()
        {
            foreach (CudaEvent mark in _marks) mark.Dispose();
        }
    }
}
