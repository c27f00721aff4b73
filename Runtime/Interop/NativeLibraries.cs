using System.Diagnostics;
using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

[assembly: DisableRuntimeMarshalling]

namespace LaspNative.Runtime.Interop;

/// <summary>Where a native library was found, or every name that was tried without luck.</summary>
/// <param name="Name">The short name that the imports use: "cuda", "nvrtc", "cublasLt", "nccl", "openblas".</param>
/// <param name="Path">The file that was loaded; null when none was.</param>
/// <param name="Tried">Names and paths in the order tried, up to the one that loaded.</param>
/// <param name="Remedy">What to install or set, in one clause.</param>
public sealed record NativeLibraryStatus(string Name, string? Path, IReadOnlyList<string> Tried, string Remedy)
{
    public bool Found => Path is not null;

    /// <summary>One line: what is missing, what was tried, what to do.</summary>
    public string Explanation => Found
        ? $"{Name} is {Path}"
        : $"the {Name} library was not found (tried {string.Join(", ", Tried)}); {Remedy}";
}

/// <summary>
/// The one import resolver. Each library is searched for once, by its versioned names as the loader knows them and then in the usual folders;
/// nothing is loaded before the first call into it, and what is missing is an answer, not a crash. Library names are those of Linux.
/// </summary>
internal static class NativeLibraries
{
    public const string Cuda = "cuda";
    public const string Nvrtc = "nvrtc";
    public const string CublasLt = "cublasLt";
    public const string Nccl = "nccl";
    public const string OpenBlas = "openblas";

    private sealed record Candidate(string Override, string[] FileNames, string Remedy);

    private sealed record Loaded(nint Handle, NativeLibraryStatus Status);

    private static readonly Dictionary<string, Candidate> s_candidates = new(StringComparer.Ordinal)
    {
        [Cuda] = new("", ["libcuda.so.1", "libcuda.so"], "install the NVIDIA driver"),
        [Nvrtc] = new(LaspOptions.Current.NvrtcPath ?? "", ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2", "libnvrtc.so"], "install NVRTC of CUDA 12 or 13, or set LASP_NVRTC to its file"),
        [CublasLt] = new("", ["libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"], "install cuBLAS of CUDA 12 or 13, or add its folder to LD_LIBRARY_PATH"),
        [OpenBlas] = new(LaspOptions.Current.OpenBlas ?? "", ["libopenblas.so.0", "libopenblas.so"], "install libopenblas0, or set LASP_OPENBLAS to its file, or to 0 to do without"),
        [Nccl] = new("", ["libnccl.so.2", "libnccl.so"], "install NCCL 2, or add its folder to LD_LIBRARY_PATH"),
    };

    private static readonly string[] s_folders =
    [
        .. LaspOptions.Current.CudaHome is { } home ? new[] { Path.Combine(home, "lib64") } : [],
        "/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib", "/opt/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/usr/lib/wsl/lib",
    ];

    private static readonly Lock s_lock = new();
    private static readonly Dictionary<string, Loaded> s_loaded = new(StringComparer.Ordinal);
    private static bool s_registered;

    /// <summary>Makes the imports of this assembly resolve here. Every interop class calls it from its static constructor.</summary>
    public static void Register()
    {
        lock (s_lock)
        {
            if (s_registered) return;
            NativeLibrary.SetDllImportResolver(typeof(NativeLibraries).Assembly, Resolve);
            s_registered = true;
        }
    }

    /// <summary>Loads the library if that has not been tried yet, and says how it went.</summary>
    public static NativeLibraryStatus Find(string name) => Load(name).Status;

    /// <summary>Throws the library's <see cref="NativeLibraryStatus.Explanation"/> when it is missing.</summary>
    public static void Require(string name)
    {
        NativeLibraryStatus status = Find(name);
        if (!status.Found) throw new LaspException(status.Explanation);
    }

    private static nint Resolve(string name, Assembly assembly, DllImportSearchPath? path)
    {
        if (!s_candidates.ContainsKey(name)) return 0;
        Loaded loaded = Load(name);
        return loaded.Handle != 0 ? loaded.Handle : throw new LaspException(loaded.Status.Explanation);
    }

    private static Loaded Load(string name)
    {
        lock (s_lock)
        {
            if (!s_loaded.TryGetValue(name, out Loaded? loaded)) s_loaded[name] = loaded = Search(name, s_candidates[name]);
            return loaded;
        }
    }

    private static Loaded Search(string name, Candidate candidate)
    {
        var tried = new List<string>();
        foreach (string file in Names(candidate))
        {
            tried.Add(file);
            if (Path.IsPathRooted(file) && !File.Exists(file)) continue;
            PreloadNeighbours(file);
            if (NativeLibrary.TryLoad(file, out nint handle))
                return new Loaded(handle, new NativeLibraryStatus(name, LoadedPath(file), tried, candidate.Remedy));
        }
        // Folders that do not hold the file are not worth listing one by one.
        string[] report = [.. tried.Where(t => !Path.IsPathRooted(t) || t == candidate.Override), .. candidate.Override.Length == 0 ? s_folders : []];
        return new Loaded(0, new NativeLibraryStatus(name, null, report, candidate.Remedy));
    }

    private static IEnumerable<string> Names(Candidate candidate)
    {
        if (candidate.Override.Length > 0) return [candidate.Override];
        return candidate.FileNames.Concat(from folder in s_folders from file in candidate.FileNames select Path.Combine(folder, file));
    }

    /// <summary>NVRTC opens its builtins by bare name: loaded beforehand, they are found outside the loader's path too.</summary>
    private static void PreloadNeighbours(string file)
    {
        if (!Path.IsPathRooted(file) || !Path.GetFileName(file).StartsWith("libnvrtc.so", StringComparison.Ordinal)) return;
        foreach (string builtins in Directory.EnumerateFiles(Path.GetDirectoryName(file)!, "libnvrtc-builtins.so.*").Order(StringComparer.Ordinal))
            NativeLibrary.TryLoad(builtins, out _);
    }

    /// <summary>The full path of a library that was loaded under a bare name, from the process's own module list.</summary>
    private static string LoadedPath(string file)
    {
        if (Path.IsPathRooted(file)) return file;
        string stem = file[..(file.IndexOf(".so", StringComparison.Ordinal) + 3)];
        using var process = Process.GetCurrentProcess();
        foreach (ProcessModule module in process.Modules)
        {
            string? path = module.FileName;
            if (path is not null && Path.GetFileName(path).StartsWith(stem, StringComparison.Ordinal)) return path;
        }
        return file;
    }
}
