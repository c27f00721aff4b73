using System.Globalization;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>One compiled kernel: its file, element type, architecture and name.</summary>
public readonly record struct KernelKey(string File, DType Element, string Architecture, string Kernel) : IComparable<KernelKey>
{
    public int CompareTo(KernelKey other) => string.CompareOrdinal(ToString(), other.ToString());

    public override string ToString() => $"{File} {Kernel} {Element} {Architecture}";
}

/// <summary>The most that a kernel may need: registers per thread, bytes spilled and reloaded, and bytes of shared memory that it declares (what a launch adds is the host's).</summary>
public readonly record struct KernelBudget(int Registers, int SpillBytes, int SharedBytes)
{
    /// <summary>Registers are granted to warps in units of 8 per thread; a budget is a whole number of units.</summary>
    private const int RegisterUnit = 8;

    public bool Allows(KernelResources resources) =>
        resources.Registers <= Registers && KernelCheck.Spills(resources) <= SpillBytes && resources.SharedBytes <= SharedBytes;

    public override string ToString() => $"{Registers} registers, {SpillBytes} bytes spilled, {SharedBytes} of shared memory";

    /// <summary>Reads lines of "file kernel element architecture registers spill-bytes shared-bytes"; # starts a comment.</summary>
    public static Dictionary<KernelKey, KernelBudget> Read(string path)
    {
        var budgets = new Dictionary<KernelKey, KernelBudget>();
        if (!File.Exists(path)) return budgets;
        int number = 0;
        foreach (string line in File.ReadLines(path))
        {
            number++;
            string[] fields = line.Split('#')[0].Split(' ', StringSplitOptions.RemoveEmptyEntries);
            if (fields.Length == 0) continue;
            if (fields.Length != 7
                || !Enum.TryParse(fields[2], out DType element)
                || !int.TryParse(fields[4], CultureInfo.InvariantCulture, out int registers)
                || !int.TryParse(fields[5], CultureInfo.InvariantCulture, out int spills)
                || !int.TryParse(fields[6], CultureInfo.InvariantCulture, out int shared))
                throw new LaspException($"{path}:{number}: '{line}' is not 'file kernel element architecture registers spill-bytes shared-bytes'");
            budgets[new KernelKey(fields[0], element, fields[3], fields[1])] = new KernelBudget(registers, spills, shared);
        }
        return budgets;
    }

    /// <summary>Writes what was measured, registers rounded up to whole units.</summary>
    public static void Write(string path, IEnumerable<(KernelKey Key, KernelResources Resources)> measured)
    {
        using var writer = new StreamWriter(path) { NewLine = "\n" };
        writer.WriteLine("# Most registers per thread, bytes spilled and reloaded, and bytes of shared memory declared, per kernel, element type and architecture.");
        writer.WriteLine("# Checked by: dotnet run --project Perf -c Release -- kernels --check      rewritten by: kernels --write");
        writer.WriteLine($"# {"file",-28} {"kernel",-30} {"element",-7} {"arch",-6} {"registers",9} {"spills",6} {"shared",6}");
        foreach ((KernelKey key, KernelResources resources) in measured)
        {
            int registers = (resources.Registers + RegisterUnit - 1) / RegisterUnit * RegisterUnit;
            writer.WriteLine($"{key.File,-30} {key.Kernel,-30} {key.Element,-7} {key.Architecture,-6} {registers,9} {KernelCheck.Spills(resources),6} {resources.SharedBytes,6}");
        }
    }
}
