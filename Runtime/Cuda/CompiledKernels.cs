using System.Globalization;
using System.Text;
using System.Text.RegularExpressions;

namespace LaspNative.Runtime.Cuda;

/// <summary>What one kernel costs, as the assembler reported it. Bytes of stack and spills are per thread, shared memory is static and per block.</summary>
public sealed record KernelResources(string Name, int Registers, int SpillStoreBytes, int SpillLoadBytes, int SharedBytes, int StackBytes);

/// <summary>One .cu file compiled for one architecture.</summary>
public sealed partial class CompiledKernels
{
    internal CompiledKernels(string file, byte[] image, string log, bool fromCache)
    {
        File = file;
        Image = image;
        Log = log;
        FromCache = fromCache;
        Kernels = ParseResources(log);
        Names = IsText(image) ? [.. Declared().Matches(Encoding.UTF8.GetString(image)).Select(m => m.Groups["name"].Value)] : Cubin.KernelNames(image);
    }

    /// <summary>The .cu file's name.</summary>
    public string File { get; }

    /// <summary>A cubin; PTX text, ended by a zero, when the architecture was a virtual one (compute_80).</summary>
    public byte[] Image { get; }

    /// <summary>All that the compiler and the assembler said.</summary>
    public string Log { get; }

    /// <summary>Whether it was read from the disk cache rather than compiled.</summary>
    public bool FromCache { get; }

    /// <summary>The kernels that the image holds, PTX or cubin.</summary>
    public IReadOnlyList<string> Names { get; }

    /// <summary>Per kernel, in the assembler's order; empty for PTX, which is not assembled yet.</summary>
    public IReadOnlyList<KernelResources> Kernels { get; }

    /// <summary>
    /// Reads ptxas -v. A kernel is announced by "Compiling entry function 'name'"; its own figures follow, and those of functions that were not
    /// inlined into it, of which the worst counts.
    /// </summary>
    private static List<KernelResources> ParseResources(string log)
    {
        var kernels = new List<KernelResources>();
        foreach (string line in log.Split('\n'))
        {
            if (Entry().Match(line) is { Success: true } entry)
            {
                kernels.Add(new KernelResources(entry.Groups["name"].Value, 0, 0, 0, 0, 0));
                continue;
            }
            if (kernels.Count == 0) continue;
            KernelResources k = kernels[^1];
            if (Frame().Match(line) is { Success: true } frame)
                kernels[^1] = k with
                {
                    StackBytes = Math.Max(k.StackBytes, Number(frame, "stack")),
                    SpillStoreBytes = Math.Max(k.SpillStoreBytes, Number(frame, "stores")),
                    SpillLoadBytes = Math.Max(k.SpillLoadBytes, Number(frame, "loads")),
                };
            else if (Used().Match(line) is { Success: true } used)
                kernels[^1] = k with
                {
                    Registers = Math.Max(k.Registers, Number(used, "registers")),
                    SharedBytes = Math.Max(k.SharedBytes, Shared().Match(line) is { Success: true } shared ? Number(shared, "bytes") : 0),
                };
        }
        return kernels;
    }

    private static bool IsText(byte[] image) => image.Length == 0 || image[0] != Cubin.FirstByte;

    private static int Number(Match match, string group) => int.Parse(match.Groups[group].ValueSpan, CultureInfo.InvariantCulture);

    [GeneratedRegex(@"\.entry\s+(?<name>\w+)", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex Declared();

    [GeneratedRegex("Compiling entry function '(?<name>[^']+)'", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex Entry();

    [GeneratedRegex(@"(?<stack>\d+) bytes stack frame, (?<stores>\d+) bytes spill stores, (?<loads>\d+) bytes spill loads", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex Frame();

    [GeneratedRegex(@"Used (?<registers>\d+) registers", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex Used();

    [GeneratedRegex(@"(?<bytes>\d+) bytes smem", RegexOptions.ExplicitCapture, 1000)]
    private static partial Regex Shared();
}
