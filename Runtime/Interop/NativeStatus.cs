using System.Diagnostics;
using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace LaspNative.Runtime.Interop;

/// <summary>A native call that returned an error. The message names the call, the code's name and its meaning.</summary>
public sealed class NativeCallException : LaspException
{
    internal NativeCallException(string message, string call, int code) : base(message)
    {
        Call = call;
        Code = code;
    }

    /// <summary>The function that failed: "cuLaunchKernel".</summary>
    public string Call { get; }

    /// <summary>The library's own status code.</summary>
    public int Code { get; }
}

/// <summary>
/// Checks written where the native call is written: <c>CudaDriver.cuStreamSynchronize(stream).Check()</c>. The compiler hands over the call's text, so that
/// success formats and allocates nothing.
/// </summary>
internal static class NativeStatus
{
    [StackTraceHidden]
    public static void Check(this CUresult s, [CallerArgumentExpression(nameof(s))] string call = "")
    {
        if (s != CUresult.CUDA_SUCCESS) Throw(s, call);
    }

    [StackTraceHidden]
    public static void Check(this nvrtcResult s, [CallerArgumentExpression(nameof(s))] string call = "")
    {
        if (s != nvrtcResult.NVRTC_SUCCESS) Throw(s, call);
    }

    [StackTraceHidden]
    public static void Check(this cublasStatus_t s, [CallerArgumentExpression(nameof(s))] string call = "")
    {
        if (s != cublasStatus_t.CUBLAS_STATUS_SUCCESS) Throw(s, call);
    }

    /// <summary>ncclInProgress counts as success: only communicators that were asked to be non-blocking return it.</summary>
    [StackTraceHidden]
    public static void Check(this ncclResult_t s, int rank, nint communicator, [CallerArgumentExpression(nameof(s))] string call = "")
    {
        if (s is not (ncclResult_t.ncclSuccess or ncclResult_t.ncclInProgress)) Throw(s, rank, communicator, call);
    }

    /// <summary>"CUDA_ERROR_NO_DEVICE (no CUDA-capable device is detected)".</summary>
    public static unsafe string Describe(this CUresult s)
    {
        string? name = CudaDriver.cuGetErrorName(s, out byte* n) == CUresult.CUDA_SUCCESS ? Text(n) : null;
        string? meaning = CudaDriver.cuGetErrorString(s, out byte* m) == CUresult.CUDA_SUCCESS ? Text(m) : null;
        // From 700 on, the code tells of a kernel that failed earlier, whatever call reports it.
        string hint = (int)s is >= 700 and < 720 ? "; the fault is an earlier kernel's, which CUDA_LAUNCH_BLOCKING=1 names" : "";
        return name is null ? $"CUresult {(int)s}" : $"{name} ({meaning ?? "no description"}{hint})";
    }

    [DoesNotReturn, StackTraceHidden]
    private static void Throw(CUresult s, string call) => throw Failure(call, (int)s, s.Describe());

    [DoesNotReturn, StackTraceHidden]
    private static unsafe void Throw(nvrtcResult s, string call) => throw Failure(call, (int)s, $"{Text(Nvrtc.nvrtcGetErrorString(s)) ?? "no description"} (code {(int)s})");

    [DoesNotReturn, StackTraceHidden]
    private static void Throw(cublasStatus_t s, string call) => throw Failure(call, (int)s, $"{s} (code {(int)s})");

    [DoesNotReturn, StackTraceHidden]
    private static unsafe void Throw(ncclResult_t s, int rank, nint communicator, string call)
    {
        string meaning = Text(Nccl.ncclGetErrorString(s)) ?? "no description";
        string? last = Text(Nccl.ncclGetLastError(communicator))?.ReplaceLineEndings(" ").Trim();
        string detail = string.IsNullOrEmpty(last) ? "no further detail; set NCCL_DEBUG=WARN to see more" : last;
        throw Failure(call, (int)s, $"{s} ({meaning}) on rank {rank}: {detail}");
    }

    private static NativeCallException Failure(string call, int code, string meaning)
    {
        // "CudaDriver.cuMemFreeAsync(pointer, stream)" is reported as "cuMemFreeAsync".
        int end = call.IndexOf('(', StringComparison.Ordinal);
        string head = end < 0 ? call : call[..end];
        string name = head[(head.LastIndexOf('.') + 1)..];
        return new NativeCallException($"{name} failed: {meaning}", name, code);
    }

    private static unsafe string? Text(byte* utf8) => Marshal.PtrToStringUTF8((nint)utf8);
}
