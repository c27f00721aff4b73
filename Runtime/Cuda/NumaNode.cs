using System.Globalization;
using System.Runtime.InteropServices;

namespace LaspNative.Runtime.Cuda;

/// <summary>
/// The processors beside a GPU: those of the NUMA node, in most hosts the socket, that its PCI Express lanes end at. Linux takes pages from the node of the processor that asks for them, and copies between a GPU and
/// another socket's memory cross the link between the sockets. So pinned memory is allocated by a thread that stays on these processors meanwhile. Source: Linux, Documentation/ABI/testing/sysfs-bus-pci and sched_setaffinity(2).
/// </summary>
internal sealed partial class NumaNode
{
    private const int MaskBytes = 1024; // 8192 processors, the most that Linux is built for
    private readonly byte[] _processors;

    private NumaNode(byte[] processors) => _processors = processors;

    /// <summary>Null where the host has one node only, says none for the device, or is not Linux.</summary>
    /// <param name="address">Of the device on its bus, as 0000:1b:00.0.</param>
    /// <param name="sysfs">Where the kernel describes devices and nodes.</param>
    public static NumaNode? Of(string address, string sysfs = "/sys")
    {
        string nodes = Path.Combine(sysfs, "devices/system/node");
        if (Read(Path.Combine(nodes, "online")) is not { } online || !online.AsSpan().ContainsAny(',', '-')) return null; // "0": one node
        if (!int.TryParse(Read(Path.Combine(sysfs, "bus/pci/devices", address.ToLowerInvariant(), "numa_node")), NumberStyles.None, CultureInfo.InvariantCulture, out int node)) return null; // "-1": not known
        return Read(Path.Combine(nodes, FormattableString.Invariant($"node{node}"), "cpulist")) is { Length: > 0 } list ? new NumaNode(Mask(list)) : null;
    }

    /// <summary>
    /// Keeps the calling thread on those of these processors that it may use, until the result is disposed of by the same thread. Where it may use none of them (a container's or the user's choice), or the system
    /// refuses, it stays as it is: memory is then a little farther away, and just as good.
    /// </summary>
    public unsafe Stay Enter()
    {
        byte[] before = new byte[MaskBytes], here = new byte[MaskBytes];
        fixed (byte* b = before, h = here)
        {
            if (sched_getaffinity(0, MaskBytes, b) < 0) return default;
            bool any = false;
            for (int i = 0; i < MaskBytes; i++) any |= (here[i] = (byte)(before[i] & _processors[i])) != 0;
            return any && sched_setaffinity(0, MaskBytes, h) == 0 ? new Stay(before) : default;
        }
    }

    /// <summary>While it lasts the thread stays on the processors; its end gives back those that it had.</summary>
    public readonly struct Stay(byte[] before) : IDisposable
    {
        public unsafe void Dispose()
        {
            if (before is null) return;
            fixed (byte* mask = before) _ = sched_setaffinity(0, MaskBytes, mask);
        }
    }

    private static string? Read(string file)
    {
        try
        {
            return File.ReadAllText(file).Trim();
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }

    /// <summary>The bits of "0-31,64-95".</summary>
    private static byte[] Mask(string list)
    {
        var mask = new byte[MaskBytes];
        foreach (string span in list.Split(','))
        {
            string[] ends = span.Split('-');
            int first = int.Parse(ends[0], CultureInfo.InvariantCulture), last = int.Parse(ends[^1], CultureInfo.InvariantCulture);
            for (int i = first; i <= last && i < 8 * MaskBytes; i++) mask[i / 8] |= (byte)(1 << (i % 8));
        }
        return mask;
    }

    [LibraryImport("libc")]
    private static unsafe partial int sched_getaffinity(int thread, nuint bytes, byte* mask);

    [LibraryImport("libc")]
    private static unsafe partial int sched_setaffinity(int thread, nuint bytes, byte* mask);
}
