using System.CommandLine;
using LaspNative.Collectives;
using LaspNative.Runtime;

namespace LaspNative.Cli;

/// <summary>
/// The options that every command which computes has. What belongs to later versions is accepted by name and refused in one line by <see cref="CheckAvailable"/>.
/// </summary>
internal sealed class CommonOptions
{
    private const string DefaultStrategy = "lasp2";
    private const string DefaultSoftmaxStrategy = "allgather";

    public Option<string?> Device { get; } = OptionKinds.Choice("--device", "Where to compute; auto takes cuda where a GPU and its libraries are usable. [default: auto]", "auto", "cpu", "cuda");

    public Option<int?> Ranks { get; } = OptionKinds.Whole("--ranks", "Ranks that each sequence is divided among. [default: 1]", "W", 1);

    public Option<bool> VirtualRanks { get; } = new("--virtual-ranks") { Description = "Let all ranks share one GPU; on the CPU they share it anyway." };

    public Option<int?> DataParallel { get; } = OptionKinds.Whole("--dp", "Groups of such ranks that share the batch: DP x W ranks in all. [default: 1]", "DP", 1);

    public Option<string?> Strategy { get; } = OptionKinds.Choice("--strategy", "How linear layers share the sequence. [default: lasp2]", "lasp1", DefaultStrategy, "zeco", "ring", "ulysses");

    public Option<string?> SoftmaxStrategy { get; } = OptionKinds.Choice("--softmax-strategy", "How softmax layers share the sequence. [default: allgather]", DefaultSoftmaxStrategy, "allgather-balanced", "ring", "zigzag", "ulysses");

    public Option<long?> Seed { get; } = OptionKinds.Whole("--seed", "Seed of everything random. [default: 0]", "SEED", 0L);

    public Option<string?> DType { get; } = OptionKinds.Choice("--dtype", "Element type of the computation. [default: fp32 on cpu, bf16 on cuda]", "bf16", "fp32");

    public Option<string?> Json { get; } = OptionKinds.Text("--json", "Write the result as JSON to this file; - is standard output.", "FILE");

    public Option<string?> Trace { get; } = OptionKinds.Text("--trace", "Not available yet: a Chrome trace of the run.", "FILE");

    public void AddTo(Command command)
    {
        foreach (Option option in new Option[] { Device, Ranks, VirtualRanks, DataParallel, Strategy, SoftmaxStrategy, Seed, DType, Json, Trace }) command.Add(option);
    }

    /// <summary>Throws for what this version does not do, and for a report that could not be written.</summary>
    public void CheckAvailable(ParseResult parsed)
    {
        if (parsed.GetValue(Trace) is not null) throw new LaspException("--trace is not available yet; leave it out");
        JsonReport.Check(parsed.GetValue(Json));
    }

    public SequenceParallel StrategyOf(ParseResult parsed) => SequenceParallel.Parse(parsed.GetValue(Strategy) ?? DefaultStrategy);

    public SoftmaxParallel SoftmaxStrategyOf(ParseResult parsed) => SoftmaxParallel.Parse(parsed.GetValue(SoftmaxStrategy) ?? DefaultSoftmaxStrategy);

    /// <summary>How many ranks to run and where.</summary>
    /// <param name="parsed">The command line.</param>
    /// <param name="cpuOnly">Whether auto must not take a GPU.</param>
    public WorldOptions WorldOf(ParseResult parsed, bool cpuOnly = false)
    {
        DeviceKind kind = parsed.GetValue(Device) switch
        {
            "cpu" => DeviceKind.Cpu,
            "cuda" => DeviceKind.Cuda,
            _ => !cpuOnly && SystemProbe.IsCudaUsable(out _) ? DeviceKind.Cuda : DeviceKind.Cpu,
        };
        return new WorldOptions(kind, parsed.GetValue(Ranks), parsed.GetValue(VirtualRanks));
    }

    /// <summary>fp32 on the CPU and bf16 on a GPU unless the user says otherwise.</summary>
    public static DType DTypeOf(string? name, DeviceKind device) => name switch
    {
        "fp32" => Runtime.DType.F32,
        "bf16" => Runtime.DType.BF16,
        _ => device == DeviceKind.Cpu ? Runtime.DType.F32 : Runtime.DType.BF16,
    };
}
