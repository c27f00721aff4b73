using System.Collections.Concurrent;
using System.Reflection;
using System.Text.RegularExpressions;
using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Compiles the embedded .cu files with NVRTC; needs no GPU. Every embedded .cuh is offered to the compiler as an in-memory header under its file name.
/// Results are kept for the process and on disk, keyed by everything that determines them: source, headers, options, architecture, NVRTC's version.
/// </summary>
public static partial class KernelCompiler
{
    private static readonly ConcurrentDictionary<string, Lazy<CompiledKernels>> s_compiled = new(StringComparer.Ordinal);
    private static readonly Lazy<SortedDictionary<string, string>> s_sources = new(ReadEmbeddedSources);
    private static readonly ConcurrentDictionary<string, IReadOnlyList<string>> s_alone = new(StringComparer.Ordinal);

    private static readonly (int, int) s_firstWithCache = (12, 9);
    private static readonly string[] s_noCache = ["--no-cache"];

    /// <summary>Names of the embedded .cu files.</summary>
    public static IReadOnlyList<string> Files => [.. s_sources.Value.Keys.Where(n => n.EndsWith(".cu", StringComparison.Ordinal))];

    /// <summary>
    /// The architecture to compile for on a GPU: its own, with the "a" features of Hopper. With LASP_FORCE_SM80=1 newer GPUs get "compute_80":
    /// PTX of the 8.0 code path, which their driver assembles (a cubin for 8.0 would not load there).
    /// </summary>
    public static string ArchitectureFor((int Major, int Minor) capability)
    {
        if (LaspOptions.Current.ForceSm80) return capability.Major == 8 ? "sm_80" : "compute_80";
        return capability == (9, 0) ? "sm_90a" : $"sm_{capability.Major}{capability.Minor}";
    }

    /// <summary>The one define that chooses a kernel file's element type.</summary>
    public static IReadOnlyList<string> DefinesFor(DType element) => element switch
    {
        DType.F32 => ["LASP_ELEMENT_F32=1"],
        DType.BF16 => ["LASP_ELEMENT_BF16=1"],
        _ => throw new LaspException($"there are no CUDA kernels for {element}; use F32 or BF16, or a CPU device"),
    };

    /// <summary>The kernels of an embedded file that take the compiler long, so that each is compiled alone (WANTS of common.cuh); none where the file is compiled as a whole.</summary>
    public static IReadOnlyList<string> CompiledAlone(string file) => s_alone.GetOrAdd(file, f => [.. Wants().Matches(SourceOf(f)).Select(m => m.Groups["kernel"].Value)]);

    /// <summary>Compiles what holds a kernel of an embedded file: the file, or that kernel alone where it is one of <see cref="CompiledAlone"/>.</summary>
    public static CompiledKernels CompileFor(string file, string kernel, DType element, string architecture)
    {
        IReadOnlyList<string> defines = DefinesFor(element);
        return Compile(file, CompiledAlone(file).Contains(kernel) ? [.. defines, "LASP_ONE_KERNEL=1", $"LASP_KERNEL_{kernel}=1"] : defines, architecture);
    }

    /// <summary>
    /// Compiles an embedded file ("name.cu") for "sm_80", "sm_90a", ... or to PTX for "compute_80".
    /// Throws <see cref="KernelCompilationException"/>, which carries the options and the log.
    /// </summary>
    public static CompiledKernels Compile(string file, IReadOnlyList<string> defines, string architecture)
    {
        ArgumentNullException.ThrowIfNull(file);
        ArgumentNullException.ThrowIfNull(defines);
        string source = SourceOf(file);
        string[] headers = [.. s_sources.Value.Keys.Where(n => n.EndsWith(".cuh", StringComparison.Ordinal))];
        var unit = new KernelSource(file, source, [.. headers.Select(h => (h, s_sources.Value[h]))]);

        // Rank threads ask for the same file at once: one compiles, the others wait for it.
        string key = KeyOf(unit, OptionsFor(defines, architecture));
        return s_compiled.GetOrAdd(key, _ => new Lazy<CompiledKernels>(() => Compile(unit, defines, architecture, KernelCache.Default))).Value;
    }

    private static string SourceOf(string file) => s_sources.Value.TryGetValue(file, out string? source)
        ? source
        : throw new ArgumentException($"no kernel file {file} is embedded; there are {string.Join(", ", Files)}", nameof(file));

    internal static CompiledKernels Compile(KernelSource unit, IReadOnlyList<string> defines, string architecture, KernelCache? cache)
    {
        string[] options = OptionsFor(defines, architecture);
        string key = KeyOf(unit, options);
        if (cache?.Read(key, unit.Name) is { } known) return known;
        using var program = new NvrtcProgram(unit);
        (byte[] image, string log) = program.Compile(options, virtualArchitecture: architecture.StartsWith("compute_", StringComparison.Ordinal));
        var compiled = new CompiledKernels(unit.Name, image, log, fromCache: false);
        cache?.Write(key, compiled);
        return compiled;
    }

    /// <summary>The version of the NVRTC that is loaded. Throws when there is none.</summary>
    public static (int Major, int Minor) Version()
    {
        Nvrtc.nvrtcVersion(out int major, out int minor).Check();
        return (major, minor);
    }

    internal static string KeyOf(KernelSource unit, IEnumerable<string> options)
    {
        (int major, int minor) = Version();
        return KernelCache.Key([unit.Name, unit.Text, .. unit.Headers.SelectMany(h => new[] { h.Name, h.Text }), "options", .. options, $"nvrtc {major}.{minor}"]);
    }

    /// <summary>
    /// Nothing here trades accuracy for speed globally: a kernel that wants fast approximations calls them by name.
    /// Device code is the default because the generic lambdas of the kernels cannot carry an annotation. NVRTC 12.9 and later keep results themselves, and tell nothing of resources when they find one.
    /// </summary>
    internal static string[] OptionsFor(IReadOnlyList<string> defines, string architecture) =>
        [$"--gpu-architecture={architecture}", "--std=c++17", "--device-as-default-execution-space", "--generate-line-info", "--ptxas-options=-v",
        .. Version().CompareTo(s_firstWithCache) >= 0 ? s_noCache : [],
        .. defines.Select(d => $"--define-macro={d}")];

    [GeneratedRegex(@"(?m)^#if WANTS\((?<kernel>\w+)\)", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex Wants();

    private static SortedDictionary<string, string> ReadEmbeddedSources()
    {
        var sources = new SortedDictionary<string, string>(StringComparer.Ordinal);
        Assembly assembly = typeof(KernelCompiler).Assembly;
        foreach (string name in assembly.GetManifestResourceNames().Where(n => Path.GetExtension(n) is ".cu" or ".cuh"))
        {
            using var reader = new StreamReader(assembly.GetManifestResourceStream(name)!);
            sources.Add(name, reader.ReadToEnd());
        }
        return sources;
    }
}
