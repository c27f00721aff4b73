using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Kernels;

/// <summary>Every .cu file compiles for every element type and architecture, without spills. Needs NVRTC, no GPU; exact budgets are Perf's kernel check.</summary>
public sealed class KernelCompileTests
{
    public static TheoryData<string, DType, string> Units
    {
        get
        {
            var units = new TheoryData<string, DType, string>();
            foreach (string file in KernelCompiler.Files)
                foreach (DType element in new[] { DType.F32, DType.BF16 })
                    foreach (string architecture in new[] { "sm_80", "sm_90a" })
                        units.Add(file, element, architecture);
            return units;
        }
    }

    [Theory]
    [MemberData(nameof(Units))]
    public void CompilesWithoutSpills(string file, DType element, string architecture)
    {
        Gpu.RequireCompiler();
        CompiledKernels compiled = KernelCompiler.Compile(file, KernelCompiler.DefinesFor(element), architecture);
        Assert.NotEmpty(compiled.Image);
        Assert.Equal(compiled.Kernels.Select(k => k.Name).Order(), compiled.Names.Order());
        Assert.All(compiled.Kernels, kernel => Assert.Equal(0, kernel.SpillStoreBytes + kernel.SpillLoadBytes));
    }

    /// <summary>A file may be meant for one architecture or element type only, but then for that.</summary>
    [Fact]
    public void EveryFileHasKernels()
    {
        Gpu.RequireCompiler();
        foreach (string file in KernelCompiler.Files)
            Assert.Contains(
                new[] { DType.BF16, DType.F32 }.SelectMany(element => new[] { "sm_90a", "sm_80" }.Select(architecture => (element, architecture))),
                unit => KernelCompiler.Compile(file, KernelCompiler.DefinesFor(unit.element), unit.architecture).Kernels.Count > 0);
    }

    /// <summary>What is compiled kernel by kernel leaves none of the file's kernels out, and gives each what it has in the whole file.</summary>
    [Fact]
    public void KernelsCompiledAloneAreThoseOfTheWholeFile()
    {
        Gpu.RequireCompiler();
        string[] split = [.. KernelCompiler.Files.Where(f => KernelCompiler.CompiledAlone(f).Count > 0)];
        Assert.Contains("linear_attention_key_value_wgmma.cu", split);
        foreach (string file in split)
        {
            IReadOnlyList<KernelResources> whole = KernelCompiler.Compile(file, KernelCompiler.DefinesFor(DType.BF16), "sm_90a").Kernels;
            Assert.Equal(whole.Select(k => k.Name).Order(), KernelCompiler.CompiledAlone(file).Order());
            Assert.Empty(KernelCompiler.Compile(file, KernelCompiler.DefinesFor(DType.F32), "sm_90a").Kernels); // nothing is compiled alone in fp32
            string cheapest = whole.MinBy(k => k.Registers)!.Name;
            KernelResources alone = Assert.Single(KernelCompiler.CompileFor(file, cheapest, DType.BF16, "sm_90a").Kernels);
            Assert.Equal(whole.Single(k => k.Name == cheapest), alone);
        }
    }

    [Fact]
    public void CompilingAllThrowsTheFirstErrorAsItWas()
    {
        Gpu.RequireCompiler();
        KernelCompilationException error = Assert.Throws<KernelCompilationException>(() => KernelLibrary.CompileAll("sm_1", DType.F32, DType.BF16));
        Assert.Contains("does not compile for --gpu-architecture=sm_1", error.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void EveryFileOpensWithItsContract()
    {
        foreach (string file in KernelCompiler.Files)
        {
            using var reader = new StreamReader(typeof(KernelCompiler).Assembly.GetManifestResourceStream(file)!);
            Assert.StartsWith("// ", reader.ReadLine());
        }
    }
}
