using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>
/// What compute-sanitizer runs. Rows carry their shard as a trait (Memcheck=0 .. 7, Racecheck=0 .. 7), so that several processes share the work: most of it is done by the host; and the words of
/// their name (Memcheck=softmax, Racecheck=channel), so that one family can be checked by itself.
/// </summary>
[Trait("Category", "Sanitizer")]
public class SanitizerTests(SharedGpu gpu) : IClassFixture<SharedGpu>
{
    private const int Shards = 8;

    /// <summary>The race checks' rows among them: some kernels are launched for larger operands only.</summary>
    public static IEnumerable<TheoryDataRow<string>> MemoryRows => Sharded("Memcheck", OpCases.SmallNames.Union(OpCases.RaceNames));

    public static IEnumerable<TheoryDataRow<string>> RaceRows => Sharded("Racecheck", OpCases.RaceNames);

    [Theory]
    [MemberData(nameof(MemoryRows))]
    public void Stays_in_its_memory(string name) => Run(name);

    [Theory]
    [MemberData(nameof(RaceRows))]
    public void Has_no_races(string name) => Run(name);

    private void Run(string name)
    {
        OpCase row = OpCases.Get(name);
        row.AssertParity(gpu.Open(), DType.F32, twice: false);
        row.AssertParity(gpu.Open(), DType.BF16, twice: false);
    }

    private static IEnumerable<TheoryDataRow<string>> Sharded(string trait, IEnumerable<string> names) =>
        names.Select((name, i) => new TheoryDataRow<string>(name) { Traits = { [trait] = [$"{i % Shards}", .. OpCases.Words(name)] } });
}

/// <summary>The rows for race checks launch every kernel, in both element types.</summary>
public class SanitizerCoverageTests
{
    /// <summary>Kernels that know no element type; the backend launches those compiled for F32.</summary>
    private static readonly HashSet<string> s_typeless =
    [
        "fill_16", "fill_32", "fill_64", "permute_16", "permute_32", "permute_64", "permute_128", "run_decay", "combine_states", "softmax_merge", "decay_weights_constant", "decay_weights_running",
        "adamw", "clip_factor", "count_reciprocal", "squares_partial", "reduction_final", "key_ranges",
    ];

    [Fact]
    public void Every_row_for_race_checks_exists() => Assert.All(OpCases.RaceNames, name => Assert.NotEmpty(OpCases.Get(name).Operands));

    [Fact]
    [Trait("Category", "Gpu")]
    public void No_kernel_is_left_out()
    {
        using CudaDevice device = Gpu.Open();
        string[] left = [.. LeftOut(device, OpCases.RaceNames)];
        if (left.Length == 0) return;
        string[] helpful = [.. OpCases.SmallNames.Where(name => LeftOut(device, [name]).Intersect(left).Count() < left.Length).Take(5)];
        Assert.Fail($"no row for race checks launches {string.Join(", ", left)}; rows that launch some of them: {string.Join("; ", helpful)}");
    }

    /// <summary>The kernels that rows do not launch, as "file kernel element".</summary>
    private static IEnumerable<string> LeftOut(CudaDevice device, IEnumerable<string> names)
    {
        var launches = new LaunchedKernels();
        device.Kernels.Observer = launches;
        foreach (string name in names)
            foreach (DType element in (DType[])[DType.F32, DType.BF16]) OpCases.Get(name).Run(device, element);
        device.Kernels.Observer = null;
        return Kernels(device.Kernels).Where(k => !launches.Seen.Contains(k.Kernel)).Select(k => k.Name);
    }

    private static IEnumerable<(string Name, CudaKernel Kernel)> Kernels(KernelLibrary library)
    {
        // PTX lists no kernels: ask the assembler of the same code path.
        string architecture = library.Architecture.StartsWith("compute_", StringComparison.Ordinal) ? "sm_80" : library.Architecture;
        foreach (DType element in (DType[])[DType.F32, DType.BF16])
            foreach (string file in KernelCompiler.Files)
                foreach (KernelResources kernel in KernelCompiler.Compile(file, KernelCompiler.DefinesFor(element), architecture).Kernels)
                    if (element == DType.F32 || !s_typeless.Contains(kernel.Name))
                        yield return ($"{file} {kernel.Name} {element}", library.Get(Path.GetFileNameWithoutExtension(file), kernel.Name, element));
    }

    private sealed class LaunchedKernels : ILaunchObserver
    {
        public HashSet<CudaKernel> Seen { get; } = [];

        public void BeforeLaunch(CudaKernel kernel, CudaStream stream) => Seen.Add(kernel);

        public void AfterLaunch(CudaKernel kernel, CudaStream stream) { }
    }
}
