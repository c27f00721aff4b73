using System.Globalization;
using LaspNative.Runtime;

namespace LaspNative.Collectives;

/// <summary>
/// What a launcher (ours, torchrun, a cluster's) tells a process about the rank that it is, under the environment names that they all share:
/// RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT.
/// </summary>
public sealed record LaunchedRank(int Rank, int WorldSize, int LocalRank, string MasterAddress, int MasterPort)
{
    /// <summary>Processes on this node. Launchers that do not set LOCAL_WORLD_SIZE are taken to run all of them here.</summary>
    public int LocalSize { get; init; } = WorldSize;

    /// <summary>Null when no launcher started this process: RANK and WORLD_SIZE are not both set.</summary>
    public static LaunchedRank? FromEnvironment() => Read(Environment.GetEnvironmentVariable);

    internal static LaunchedRank? Read(Func<string, string?> variable)
    {
        if (string.IsNullOrEmpty(variable("RANK")) || string.IsNullOrEmpty(variable("WORLD_SIZE"))) return null;
        int size = Number(variable, "WORLD_SIZE", 1, int.MaxValue);
        int rank = Number(variable, "RANK", 0, size - 1);
        int local = Number(variable, "LOCAL_RANK", 0, size - 1);
        int port = Number(variable, "MASTER_PORT", 1, 65535);
        string address = variable("MASTER_ADDR") is { Length: > 0 } text ? text : throw Missing("MASTER_ADDR");
        // torchrun's own agent already listens at MASTER_PORT; every rank sees its flag, so all move on by one.
        if (variable("TORCHELASTIC_USE_AGENT_STORE") == "True") port = port < 65535 ? port + 1 : port - 1;
        int localSize = string.IsNullOrEmpty(variable("LOCAL_WORLD_SIZE")) ? size : Number(variable, "LOCAL_WORLD_SIZE", 1, size);
        return new LaunchedRank(rank, size, local, address, port) { LocalSize = localSize };
    }

    private static int Number(Func<string, string?> variable, string name, int least, int most)
    {
        if (variable(name) is not { Length: > 0 } text) throw Missing(name);
        if (int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int value) && value >= least && value <= most) return value;
        throw new LaspException($"the environment variable {name} is '{text}'; a launcher sets it to a number from {least} to {most}");
    }

    private static LaspException Missing(string name) =>
        new($"RANK and WORLD_SIZE are set but {name} is not; start ranks with 'lasp launch' or torchrun, or unset RANK and WORLD_SIZE");
}
