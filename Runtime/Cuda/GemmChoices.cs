using System.Globalization;
using System.Runtime.InteropServices;
using System.Security.Cryptography;
using System.Text;
using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// Measured algorithms of matrix products on disk, one small text file per problem and machine, beside the compiled kernels. The first one to measure settles a problem for good: its file appears whole,
/// under a name that it does not take from another, and whoever measured at the same time, in this process or in others, takes what stands there. Two measurements of close candidates need not agree;
/// so all ranks and all later runs still compute the same bits.
/// A file whose hash is not that of its text, or that speaks of another problem or machine, counts as absent and is replaced.
/// </summary>
/// <param name="folder">Where the files are; made at the first choice.</param>
/// <param name="machine">All that decides about speed besides the problem: an algorithm means something else, or is faster or slower, where this differs.</param>
internal sealed partial class GemmChoices(string folder, string machine)
{
    private const string Title = "A matrix product's fastest algorithm, as measured by LaspNative. Delete this file to have it measured again.";
    private const string AlgorithmLine = "algorithm: ";
    private const string HashLine = "sha256: ";

    /// <summary>The choices made on machines like this one; null where nothing is to be measured, or nothing can be kept.</summary>
    public static GemmChoices? Of(CudaDevice device)
    {
        NativeLibraries.Require(NativeLibraries.CublasLt);
        if (!LaspOptions.Current.GemmTuning || KernelCache.Default is not { } kernels) return null;
        CudaDriver.cuDriverGetVersion(out int driver).Check();
        return new GemmChoices(kernels.Folder, string.Create(
            CultureInfo.InvariantCulture, $"{device.Context.GpuName}, {device.MultiprocessorCount} multiprocessors, CUDA driver {driver}, cuBLASLt {CublasLt.cublasLtGetVersion()}, workspace {GemmPlan.WorkspaceBytes}"));
    }

    public cublasLtMatmulAlgo_t? Read(GemmProblem problem)
    {
        try
        {
            string text = File.ReadAllText(FileOf(problem));
            int hash = text.LastIndexOf(HashLine, StringComparison.Ordinal), algorithm = text.IndexOf(AlgorithmLine, StringComparison.Ordinal);
            if (hash < 0 || algorithm < 0 || !text.StartsWith(Opening(problem), StringComparison.Ordinal) || text[(hash + HashLine.Length)..].TrimEnd() != HashOf(text[..hash])) return null;
            ReadOnlySpan<char> digits = text.AsSpan(algorithm + AlgorithmLine.Length);
            return MemoryMarshal.Read<cublasLtMatmulAlgo_t>(Convert.FromHexString(digits[..digits.IndexOf('\n')]));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }

    /// <summary>Settles a problem and returns the choice that stands, which may be another's; null when none could be kept.</summary>
    /// <param name="problem">What was measured.</param>
    /// <param name="algorithm">What proved fastest.</param>
    /// <param name="milliseconds">Its time.</param>
    /// <param name="usual">The time of what the library's heuristic would have taken.</param>
    public cublasLtMatmulAlgo_t? Settle(GemmProblem problem, cublasLtMatmulAlgo_t algorithm, float milliseconds, float usual)
    {
        string digits = Convert.ToHexStringLower(MemoryMarshal.AsBytes(new ReadOnlySpan<cublasLtMatmulAlgo_t>(in algorithm)));
        string text = string.Create(
            CultureInfo.InvariantCulture, $"{Opening(problem)}time: {milliseconds} ms, {problem.Flops / milliseconds / 1e9:F0} TFLOP/s; the heuristic's first: {usual} ms\n{AlgorithmLine}{digits}\n");
        string temporary = Path.Combine(folder, $".{Environment.ProcessId}.{Guid.NewGuid():N}");
        try
        {
            Directory.CreateDirectory(folder);
            File.WriteAllText(temporary, $"{text}{HashLine}{HashOf(text)}\n");
            // A taken name is refused. If it stands for nothing that can be read, or the file system has no such links, the file moves there.
            if (Link(temporary, FileOf(problem)) != 0 && Read(problem) is null) File.Move(temporary, FileOf(problem), overwrite: true);
            File.Delete(temporary);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
        return Read(problem);
    }

    internal string FileOf(GemmProblem problem) => Path.Combine(folder, KernelCache.Key(machine, problem.ToString()) + ".product");

    private string Opening(GemmProblem problem) => $"{Title}\nmachine: {machine}\nproblem: {problem}\n";

    private static string HashOf(string text) => Convert.ToHexStringLower(SHA256.HashData(Encoding.UTF8.GetBytes(text)));

    /// <summary>Gives a file a second name, in one step; File.Move looks whether a name is taken before it takes it.</summary>
    [LibraryImport("libc", EntryPoint = "link", StringMarshalling = StringMarshalling.Utf8)]
    private static partial int Link(string file, string name);
}
