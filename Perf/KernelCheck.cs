using System.Globalization;
using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;

namespace LaspNative.Perf;

/// <summary>
/// Compiles every kernel for every architecture and element type with NVRTC, no GPU needed, and compares registers, spills and declared shared memory with the committed
/// budgets (Runtime/Kernels/budgets.txt). A kernel that does not compile, has no budget or exceeds it is an offence; so is a budget of a kernel that is gone.
/// </summary>
public static class KernelCheck
{
    private static readonly string[] s_architectures = ["sm_80", "sm_90a"];
    private static readonly DType[] s_elements = [DType.F32, DType.BF16];

    /// <summary>"--check" compares, "--write" replaces the budget file by what is measured now.</summary>
    public static int Run(string[] arguments)
    {
        string budgetFile = Path.Combine(RepositoryRoot(), "Runtime", "Kernels", "budgets.txt");
        return arguments switch
        {
            ["--check"] => Check(budgetFile),
            ["--write"] => Write(budgetFile),
            _ => throw new LaspException($"kernels takes --check or --write, got '{string.Join(' ', arguments)}'"),
        };
    }

    private static int Check(string budgetFile)
    {
        Dictionary<KernelKey, KernelBudget> budgets = KernelBudget.Read(budgetFile);
        (List<(KernelKey Key, KernelResources Resources)> measured, List<string> offences) = Compile();
        PrintTable(measured, budgets);
        foreach ((KernelKey key, KernelResources resources) in measured)
        {
            if (!budgets.TryGetValue(key, out KernelBudget budget)) offences.Add($"{key} has no budget; measure it with 'kernels --write' and review the change");
            else if (!budget.Allows(resources)) offences.Add($"{key} uses {new KernelBudget(resources.Registers, Spills(resources), resources.SharedBytes)}; its budget is {budget}");
        }
        HashSet<KernelKey> known = [.. measured.Select(m => m.Key)];
        if (offences.Count == 0) offences.AddRange(budgets.Keys.Where(k => !known.Contains(k)).Select(k => $"{k} has a budget but does not exist; run 'kernels --write'"));
        foreach (string offence in offences) Console.Error.WriteLine($"kernel budget: {offence}");
        (int major, int minor) = KernelCompiler.Version();
        Console.Error.WriteLine($"{measured.Count} kernels compiled by NVRTC {major}.{minor}, {offences.Count} offences");
        return offences.Count == 0 ? 0 : 1;
    }

    private static int Write(string budgetFile)
    {
        (List<(KernelKey Key, KernelResources Resources)> measured, List<string> offences) = Compile();
        if (offences.Count > 0) throw new LaspException($"no budget is written while a kernel does not compile: {offences[0]}");
        KernelBudget.Write(budgetFile, measured);
        Console.Error.WriteLine($"{measured.Count} budgets written to {budgetFile}");
        return 0;
    }

    private static (List<(KernelKey Key, KernelResources Resources)> Measured, List<string> Offences) Compile()
    {
        _ = KernelCompiler.Version(); // without NVRTC one line, not one per kernel
        var units = from file in KernelCompiler.Files from element in s_elements from architecture in s_architectures select (File: file, Element: element, Architecture: architecture);
        var measured = new List<(KernelKey, KernelResources)>();
        var offences = new List<string>();
        foreach ((var unit, CompiledKernels? compiled, KernelCompilationException? error) in units.ToArray().AsParallel().AsOrdered().Select(u => TryCompile(u.File, u.Element, u.Architecture)))
        {
            if (compiled is not null) measured.AddRange(compiled.Kernels.Select(k => (new KernelKey(unit.File, unit.Element, unit.Architecture, k.Name), k)));
            if (error is null) continue;
            offences.Add(error.Message);
            Console.Error.WriteLine(error.Log);
        }
        measured.Sort((a, b) => a.Item1.CompareTo(b.Item1));
        return (measured, offences);
    }

    private static ((string File, DType Element, string Architecture) Unit, CompiledKernels? Compiled, KernelCompilationException? Error) TryCompile(string file, DType element, string architecture)
    {
        try
        {
            return ((file, element, architecture), KernelCompiler.Compile(file, KernelCompiler.DefinesFor(element), architecture), null);
        }
        catch (KernelCompilationException e)
        {
            return ((file, element, architecture), null, e);
        }
    }

    private static void PrintTable(List<(KernelKey Key, KernelResources Resources)> measured, Dictionary<KernelKey, KernelBudget> budgets)
    {
        Console.Error.WriteLine($"{"kernel",-72} {"registers",9} {"budget",6} {"spills",6} {"stack",6} {"shared",6}");
        foreach ((KernelKey key, KernelResources resources) in measured)
        {
            string budget = budgets.TryGetValue(key, out KernelBudget b) ? b.Registers.ToString(CultureInfo.InvariantCulture) : "none";
            Console.Error.WriteLine($"{key,-72} {resources.Registers,9} {budget,6} {Spills(resources),6} {resources.StackBytes,6} {resources.SharedBytes,6}");
        }
    }

    internal static int Spills(KernelResources resources) => resources.SpillStoreBytes + resources.SpillLoadBytes;

    /// <summary>The folder that holds LaspNative.sln, looked for upwards from here and from the program.</summary>
    private static string RepositoryRoot()
    {
        foreach (string start in new[] { Directory.GetCurrentDirectory(), AppContext.BaseDirectory })
            for (DirectoryInfo? folder = new(start); folder is not null; folder = folder.Parent)
                if (File.Exists(Path.Combine(folder.FullName, "LaspNative.sln"))) return folder.FullName;
        throw new LaspException($"no LaspNative.sln above {Directory.GetCurrentDirectory()}; run the kernel check inside a clone of the repository");
    }
}
