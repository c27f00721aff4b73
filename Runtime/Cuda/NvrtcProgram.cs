using System.Runtime.InteropServices;
using System.Text;
using LaspNative.Runtime.Interop;

namespace LaspNative.Runtime.Cuda;

/// <summary>A translation unit: a .cu text and the headers it may include.</summary>
internal sealed record KernelSource(string Name, string Text, IReadOnlyList<(string Name, string Text)> Headers);

/// <summary>A kernel file that the compiler rejected. The message holds the first error, <see cref="Log"/> everything.</summary>
public sealed class KernelCompilationException : LaspException
{
    internal KernelCompilationException(string message, string file, IReadOnlyList<string> options, string log) : base(message)
    {
        File = file;
        Options = options;
        Log = log;
    }

    public string File { get; }

    public IReadOnlyList<string> Options { get; }

    public string Log { get; }

    public override string ToString() => $"{base.ToString()}\noptions: {string.Join(' ', Options)}\n{Log}";
}

/// <summary>One nvrtcProgram, from source to image and log.</summary>
internal sealed unsafe class NvrtcProgram : IDisposable
{
    private readonly KernelSource _source;
    private nint _program;

    public NvrtcProgram(KernelSource source)
    {
        _source = source;
        using var text = new Utf8Array([source.Text, source.Name]);
        using var headers = new Utf8Array([.. source.Headers.Select(h => h.Text)]);
        using var names = new Utf8Array([.. source.Headers.Select(h => h.Name)]);
        Nvrtc.nvrtcCreateProgram(out _program, text.Pointers[0], text.Pointers[1], headers.Count, headers.Pointers, names.Pointers).Check();
    }

    public (byte[] Image, string Log) Compile(string[] options, bool virtualArchitecture)
    {
        using var arguments = new Utf8Array(options);
        nvrtcResult result = Nvrtc.nvrtcCompileProgram(_program, arguments.Count, arguments.Pointers);
        string log = Log();
        if (result is nvrtcResult.NVRTC_ERROR_COMPILATION or nvrtcResult.NVRTC_ERROR_INVALID_OPTION) throw Rejected(options, log);
        result.Check("nvrtcCompileProgram");
        return (virtualArchitecture ? Ptx() : Cubin(), log);
    }

    private KernelCompilationException Rejected(string[] options, string log)
    {
        string first = log.Split('\n').FirstOrDefault(l => l.Contains("error", StringComparison.OrdinalIgnoreCase))?.Trim() ?? "no error in the log";
        return new KernelCompilationException($"{_source.Name} does not compile for {options[0]}: {first}", _source.Name, options, log);
    }

    private string Log()
    {
        Nvrtc.nvrtcGetProgramLogSize(_program, out nuint size).Check();
        var log = new byte[Math.Max((int)size, 1)];
        fixed (byte* p = log) Nvrtc.nvrtcGetProgramLog(_program, p).Check();
        return Encoding.UTF8.GetString(log).TrimEnd('\0');
    }

    private byte[] Cubin()
    {
        Nvrtc.nvrtcGetCUBINSize(_program, out nuint size).Check();
        var image = new byte[(int)size];
        fixed (byte* p = image) Nvrtc.nvrtcGetCUBIN(_program, p).Check();
        return image;
    }

    /// <summary>Its size counts the closing zero, which the driver needs to find the end.</summary>
    private byte[] Ptx()
    {
        Nvrtc.nvrtcGetPTXSize(_program, out nuint size).Check();
        var image = new byte[(int)size];
        fixed (byte* p = image) Nvrtc.nvrtcGetPTX(_program, p).Check();
        return image;
    }

    public void Dispose()
    {
        if (_program != 0) Nvrtc.nvrtcDestroyProgram(ref _program);
        _program = 0;
    }

    /// <summary>C strings for the length of a call.</summary>
    private sealed class Utf8Array : IDisposable
    {
        public Utf8Array(IReadOnlyList<string> strings)
        {
            Count = strings.Count;
            Pointers = (byte**)NativeMemory.AllocZeroed((nuint)Math.Max(Count, 1), (nuint)sizeof(byte*));
            for (int i = 0; i < Count; i++) Pointers[i] = (byte*)Marshal.StringToCoTaskMemUTF8(strings[i]);
        }

        public int Count { get; }

        public byte** Pointers { get; }

        public void Dispose()
        {
            for (int i = 0; i < Count; i++) Marshal.FreeCoTaskMem((nint)Pointers[i]);
            NativeMemory.Free(Pointers);
        }
    }
}
