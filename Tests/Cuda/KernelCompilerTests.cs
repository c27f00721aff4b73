using LaspNative.Runtime;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Cuda;

/// <summary>NVRTC without a GPU: images, reported resources, errors, and the disk cache.</summary>
public sealed class KernelCompilerTests : IDisposable
{
    private static readonly KernelSource s_scale = new(
        "scale.cu",
        """
        #include "factor.cuh"
        extern "C" __global__ void scale(const float* x, long long count, float* y)
        {
            __shared__ float tile[128];
            long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x;
            tile[threadIdx.x] = i < count ? x[i] : 0.f;
            __syncthreads();
            if (i < count) y[i] = FACTOR * tile[threadIdx.x ^ 1];
        }
        extern "C" __global__ void nothing() {}
        """,
        [("factor.cuh", "#define FACTOR 3.0f\n")]);

    private readonly string _folder = Directory.CreateTempSubdirectory("lasp-kernels-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    [Theory]
    [InlineData("sm_80")]
    [InlineData("sm_90a")]
    public void A_cubin_comes_with_the_resources_of_each_kernel(string architecture)
    {
        Gpu.RequireCompiler();
        CompiledKernels compiled = KernelCompiler.Compile(s_scale, ["LASP_ELEMENT_F32=1"], architecture, cache: null);
        Assert.Equal("\u007fELF"u8, compiled.Image.AsSpan(0, 4));
        Assert.False(compiled.FromCache);
        KernelResources scale = Assert.Single(compiled.Kernels, k => k.Name == "scale");
        Assert.InRange(scale.Registers, 4, 64);
        Assert.Equal(512, scale.SharedBytes);
        Assert.Equal((0, 0, 0), (scale.SpillStoreBytes, scale.SpillLoadBytes, scale.StackBytes));
        Assert.Single(compiled.Kernels, k => k.Name == "nothing");
        Assert.Equal(["nothing", "scale"], compiled.Names.Order());
    }

    [Fact]
    public void An_image_names_its_kernels_without_a_log()
    {
        Gpu.RequireCompiler();
        foreach (string architecture in (string[])["sm_90a", "compute_80"])
            Assert.Equal(["nothing", "scale"], new CompiledKernels("scale.cu", KernelCompiler.Compile(s_scale, [], architecture, cache: null).Image, log: "", fromCache: true).Names.Order());
    }

    [Fact]
    public void An_image_that_is_cut_off_is_told_from_one_without_kernels()
    {
        Gpu.RequireCompiler();
        byte[] image = KernelCompiler.Compile(s_scale, [], "sm_90a", cache: null).Image;
        foreach (int length in (int[])[1, 40, 63, 64, 200])
            Assert.Contains($"a cubin of {length} bytes is cut off", Assert.Throws<LaspException>(() => Cubin.KernelNames(image.AsSpan(0, length))).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void Spills_are_seen()
    {
        Gpu.RequireCompiler();
        var greedy = new KernelSource("greedy.cu", """
            extern "C" __global__ void __launch_bounds__(1024, 2) greedy(float* x)
            {
                float r[64];
                #pragma unroll
                for (int i = 0; i < 64; i++) r[i] = x[i * 1024 + threadIdx.x];
                __syncthreads();
                for (int n = 0; n < 100; n++)
                {
                    #pragma unroll
                    for (int i = 0; i < 64; i++) r[i] = r[i] * r[(i + 7) & 63] + n;
                }
                #pragma unroll
                for (int i = 0; i < 64; i++) x[i * 1024 + threadIdx.x] = r[i];
            }
            """, []);
        KernelResources resources = Assert.Single(KernelCompiler.Compile(greedy, [], "sm_80", cache: null).Kernels);
        Assert.True(resources.SpillStoreBytes > 0 && resources.SpillLoadBytes > 0 && resources.StackBytes > 0, resources.ToString());
        Assert.InRange(resources.Registers, 16, 32);
    }

    [Fact]
    public void A_virtual_architecture_gives_text_for_the_driver()
    {
        Gpu.RequireCompiler();
        CompiledKernels compiled = KernelCompiler.Compile(s_scale, [], "compute_80", cache: null);
        string ptx = System.Text.Encoding.UTF8.GetString(compiled.Image);
        Assert.Contains(".target sm_80", ptx);
        Assert.EndsWith("\0", ptx);
    }

    [Fact]
    public void An_error_carries_options_and_log()
    {
        Gpu.RequireCompiler();
        var broken = new KernelSource("broken.cu", "extern \"C\" __global__ void f() { undeclared = 1; }", []);
        KernelCompilationException e = Assert.Throws<KernelCompilationException>(() => KernelCompiler.Compile(broken, ["SOME=1"], "sm_80", cache: null));
        Assert.StartsWith("broken.cu does not compile for --gpu-architecture=sm_80: broken.cu(1): error", e.Message);
        Assert.DoesNotContain('\n', e.Message);
        Assert.Contains("undeclared", e.Log);
        Assert.Contains("--define-macro=SOME=1", e.Options);
        Assert.Contains(e.Log, e.ToString());
    }

    [Fact]
    public void The_cache_is_hit_and_a_corrupted_entry_is_compiled_again()
    {
        Gpu.RequireCompiler();
        var cache = new KernelCache(_folder);
        CompiledKernels first = KernelCompiler.Compile(s_scale, [], "sm_80", cache);
        CompiledKernels second = KernelCompiler.Compile(s_scale, [], "sm_80", cache);
        Assert.False(first.FromCache);
        Assert.True(second.FromCache);
        Assert.Equal(first.Image, second.Image);
        Assert.Equal(first.Log, second.Log);
        Assert.Equal(first.Kernels, second.Kernels);

        string file = Assert.Single(Directory.GetFiles(_folder));
        byte[] bytes = File.ReadAllBytes(file);
        bytes[^1] ^= 1;
        File.WriteAllBytes(file, bytes);
        Assert.False(KernelCompiler.Compile(s_scale, [], "sm_80", cache).FromCache);
        Assert.True(KernelCompiler.Compile(s_scale, [], "sm_80", cache).FromCache);

        File.WriteAllBytes(file, bytes[..20]);
        Assert.False(KernelCompiler.Compile(s_scale, [], "sm_80", cache).FromCache);
    }

    [Fact]
    public void The_key_depends_on_all_that_determines_the_result()
    {
        Gpu.RequireCompiler();
        string[] options = KernelCompiler.OptionsFor(["A=1"], "sm_80");
        string[] keys =
        [
            KernelCompiler.KeyOf(s_scale, options),
            KernelCompiler.KeyOf(s_scale with { Text = s_scale.Text + " " }, options),
            KernelCompiler.KeyOf(s_scale with { Headers = [("factor.cuh", "#define FACTOR 4.0f\n")] }, options),
            KernelCompiler.KeyOf(s_scale, KernelCompiler.OptionsFor(["A=2"], "sm_80")),
            KernelCompiler.KeyOf(s_scale, KernelCompiler.OptionsFor(["A=1"], "sm_90a")),
        ];
        Assert.Equal(keys.Length, keys.Distinct(StringComparer.Ordinal).Count());
        Assert.NotEqual(KernelCache.Key("ab", "c"), KernelCache.Key("a", "bc"));
    }

    [Fact]
    public void A_folder_that_cannot_be_used_means_no_cache()
    {
        string file = Path.Combine(_folder, "not-a-folder");
        File.WriteAllText(file, "");
        var cache = new KernelCache(Path.Combine(file, "below"));
        cache.Write("key", new CompiledKernels("f.cu", [1, 2, 3], "log", fromCache: false));
        Assert.Null(cache.Read("key", "f.cu"));
    }

    [Fact]
    public void The_element_type_chooses_one_define()
    {
        Assert.Equal(["LASP_ELEMENT_BF16=1"], KernelCompiler.DefinesFor(DType.BF16));
        Assert.Equal(["LASP_ELEMENT_F32=1"], KernelCompiler.DefinesFor(DType.F32));
        Assert.Throws<LaspException>(() => KernelCompiler.DefinesFor(DType.F64));
    }

    [Fact]
    public void Entries_that_nobody_has_read_for_a_month_are_deleted()
    {
        var compiled = new CompiledKernels("scale.cu", ".visible .entry scale("u8.ToArray(), log: "", fromCache: false);
        var cache = new KernelCache(_folder);
        foreach (string key in (string[])["young", "read", "forgotten"]) cache.Write(key, compiled);
        File.SetLastWriteTimeUtc(cache.FileOf("young"), DateTime.UtcNow.AddDays(-29));
        foreach (string key in (string[])["read", "forgotten"]) File.SetLastWriteTimeUtc(cache.FileOf(key), DateTime.UtcNow.AddDays(-31));
        Assert.Equal(["scale"], cache.Read("read", "scale.cu")!.Names);
        new KernelCache(_folder).Write("new", compiled); // the first of a process
        Assert.Equal(["new", "read", "young"], Directory.GetFiles(_folder).Select(Path.GetFileNameWithoutExtension).Order(StringComparer.Ordinal));
        Assert.Null(cache.Read("forgotten", "scale.cu"));
    }
}
