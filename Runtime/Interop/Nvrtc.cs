using System.Runtime.InteropServices;

namespace LaspNative.Runtime.Interop;

internal enum nvrtcResult
{
    NVRTC_SUCCESS = 0,
    NVRTC_ERROR_INVALID_OPTION = 5,
    NVRTC_ERROR_COMPILATION = 6,
}

/// <summary>The run-time compiler: only what is called. nvrtcProgram is nint.</summary>
internal static unsafe partial class Nvrtc
{
    private const string Library = NativeLibraries.Nvrtc;

    static Nvrtc() => NativeLibraries.Register();

    [LibraryImport(Library)]
    public static partial nvrtcResult nvrtcVersion(out int major, out int minor);

    [LibraryImport(Library)]
    public static partial byte* nvrtcGetErrorString(nvrtcResult result);

    [LibraryImport(Library)]
    public static partial nvrtcResult nvrtcCreateProgram(out nint program, byte* source, byte* name, int headerCount, byte** headers, byte** includeNames);

    [LibraryImport(Library)]
    public static partial nvrtcResult nvrtcDestroyProgram(ref nint program);

    [LibraryImport(Library)]
    public static partial nvrtcResult nvrtcCompileProgram(nint program, int optionCount, byte** options);

    [LibraryImport(Library)]
    public static partial nvrtcResult nvrtcGetProgramLogSize(nint program, out nuint size);

    [LibraryImport(Library)]
    public static partial nvrtcResult nvrtcGetProgramLog(nint program, byte* log);

    [LibraryImport(Library)]
    public static partial nvrtcResult nvrtcGetCUBINSize(nint program, out nuint size);

    [LibraryImport(Library)]
    public static partial nvrtcResult nvrtcGetCUBIN(nint program, byte* cubin);

    [LibraryImport(Library)]
    public static partial nvrtcResult nvrtcGetPTXSize(nint program, out nuint size);

    [LibraryImport(Library)]
    public static partial nvrtcResult nvrtcGetPTX(nint program, byte* ptx);
}
