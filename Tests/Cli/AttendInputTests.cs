using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;
using Xunit;

namespace LaspNative.Tests.Cli;

/// <summary>Everything that can be wrong with a file given to lasp attend is one line that names it, and exit code 1.</summary>
public sealed class AttendInputTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("lasp-attend-input-").FullName;
    private readonly CpuDevice _device = new(1);

    public void Dispose()
    {
        _device.Dispose();
        Directory.Delete(_folder, recursive: true);
    }

    private string PathOf(string name) => Path.Combine(_folder, name);

    /// <summary>A change to a good call (q, k, v [1, 4, 2, 8]), as "name:TYPE:shape" tokens ("name:-" leaves it out), and what the error must say.</summary>
    public static TheoryData<string, string> Mistakes() => new()
    {
        { "q:-", "no tensor 'q'" },
        { "k:-", "no tensor 'k'" },
        { "v:-", "no tensor 'v'" },
        { "q:F32:4,2,8", "q has shape [4, 2, 8]; it has four dimensions" },
        { "q:I32:1,4,2,8", "q is I32" },
        { "k:F32:1,5,2,8", "k has shape [1, 5, 2, 8]; beside q [1, 4, 2, 8] it is [1, 4, Hk, 8]" },
        { "k:F32:1,4,2,9", "k has shape [1, 4, 2, 9]" },
        { "v:F32:1,4,1,8", "v has shape [1, 4, 1, 8]" },
        { "k:BF16:1,4,2,8", "k is BF16 and q is F32; q, k, v and do share one element type" },
        { "do:F64:1,4,2,8", "do is F64 and q is F32" },
        { "do:F32:1,4,2,9", "do has shape [1, 4, 2, 9]; the output's is [1, 4, 2, 8]" },
        { "q:F32:1,4,3,8", "2 key/value heads cannot serve 3 query heads" },
        { "q:F32:1,4,2,257 k:F32:1,4,2,257", "D = 257" },
        { "v:F32:1,4,2,300", "E = 300" },
        { "q:F32:1,0,2,8 k:F32:1,0,2,8 v:F32:1,0,2,8", "at least 1 token" },
        { "log_decay:F32:3", "log_decay has shape [3]; here it is [2] per head" },
        { "log_decay:F32:1,4,2,9", "log_decay has shape [1, 4, 2, 9]; here it is [2] per head, [1, 4, 2] per token or [1, 4, 2, 8] per token and channel" },
        { "log_decay:I32:2", "log_decay is I32" },
        { "initial_state:F32:1,2,8,9", "initial_state has shape [1, 2, 8, 9]; here it is [B, H, D, E] = [1, 2, 8, 8]" },
        { "do:F32:1,4,2,8 d_final_state:F32:2,8,8", "d_final_state has shape [2, 8, 8]" },
        { "d_final_state:F32:1,2,8,8", "d_final_state is there but do is not" },
        { "cu_seqlens:I32:3", "cu_seqlens is I32 [3]; it is I64 [n+1]" },
        { "cu_seqlens:I64:3,1", "cu_seqlens is I64 [3, 1]; it is I64 [n+1]" },
        { "q:F32:2,4,2,8 k:F32:2,4,2,8 v:F32:2,4,2,8 cu_seqlens:I64:2", "the batch is 2; put the rows one after another" },
    };

    [Theory]
    [MemberData(nameof(Mistakes))]
    public void A_mistake_in_the_file_is_named(string change, string expected)
    {
        Write("q:F32:1,4,2,8 k:F32:1,4,2,8 v:F32:1,4,2,8 " + change);
        AssertRefused(expected);
    }

    [Theory]
    [InlineData(float.NaN, "log_decay of head 1 is NaN")]
    [InlineData(float.NegativeInfinity, "log_decay of head 1 is -Infinity; it must be finite")]
    public void A_decay_that_is_not_finite_is_refused(float value, string expected)
    {
        Write("q:F32:1,4,2,8 k:F32:1,4,2,8 v:F32:1,4,2,8", ("log_decay", Tensor.FromSpan([-0.5f, value], [2], _device)));
        AssertRefused(expected);
    }

    [Theory]
    [InlineData("1,4", "cu_seqlens starts with 0")]
    [InlineData("0", "cu_seqlens starts with 0")]
    [InlineData("0,3", "cu_seqlens ends at 3, but there are 4 tokens")]
    [InlineData("0,5", "cu_seqlens ends at 5, but there are 4 tokens")]
    [InlineData("0,2,2,4", "cu_seqlens must increase: entry 2 is 2 after 2")]
    [InlineData("0,3,2,4", "cu_seqlens must increase: entry 2 is 2 after 3")]
    public void Boundaries_of_documents_that_do_not_fit_are_refused(string boundaries, string expected)
    {
        long[] values = [.. boundaries.Split(',').Select(long.Parse)];
        Write("q:F32:1,4,2,8 k:F32:1,4,2,8 v:F32:1,4,2,8", ("cu_seqlens", Tensor.FromSpan(values, [values.Length], _device)));
        AssertRefused(expected);
        AssertRefused(expected, "--attention", "softmax");
    }

    [Fact]
    public void A_state_per_document_is_asked_for()
    {
        Write("q:F32:1,4,2,8 k:F32:1,4,2,8 v:F32:1,4,2,8 initial_state:F32:1,2,8,8", ("cu_seqlens", Tensor.FromSpan([0L, 1, 4], [3], _device)));
        AssertRefused("initial_state has shape [1, 2, 8, 8]; here it is [n, H, D, E] = [2, 2, 8, 8]");
    }

    [Fact]
    public void A_decay_per_token_that_is_not_finite_is_refused_with_its_place()
    {
        float[] decay = new float[8];
        decay[5] = float.NaN;
        Write("q:F32:1,4,2,8 k:F32:1,4,2,8 v:F32:1,4,2,8", ("log_decay", Tensor.FromSpan(decay, [1, 4, 2], _device)));
        AssertRefused("log_decay of token 2, head 1 is NaN; it must be finite");
        AssertRefused("log_decay of token 2, head 1 is NaN; it must be finite", "--ranks", "3");
    }

    [Fact]
    public void Options_that_do_not_fit_the_file_are_refused()
    {
        Write("q:F32:1,4,2,8 k:F32:1,4,2,8 v:F32:1,4,2,8 log_decay:F32:2");
        AssertRefused("--no-causal with log_decay has no meaning", "--no-causal");
        AssertRefused("--dtype bf16 does not fit q, which is F32", "--dtype", "bf16");
        Write("q:F32:1,4,2,8 k:F32:1,4,2,8 v:F32:1,4,2,8");
        AssertRefused("strategy lasp1 is causal only", "--no-causal", "--strategy", "lasp1", "--ranks", "2");
        AssertRefused("--dp 2 shares a batch among groups", "--dp", "2");
        AssertRefused("the largest number of ranks it can use is 2", "--strategy", "ulysses", "--ranks", "4");
        AssertRefused("the largest number of ranks it can use is 2", "--attention", "softmax", "--softmax-strategy", "ulysses", "--ranks", "4");
        AssertRefused("cannot be written", "--output", PathOf("no/folder/out"));
        byte[] input = File.ReadAllBytes(PathOf("in"));
        AssertRefused("is the input too", "--output", Path.Combine(_folder, ".", "in"));
        Assert.Equal(input, File.ReadAllBytes(PathOf("in")));
        Write("q:F32:1,4,2,8 k:F32:1,4,2,8 v:F32:1,4,2,8 initial_state:F32:1,2,8,8");
        AssertRefused("initial_state belongs to linear attention", "--attention", "softmax");
        AssertRefused("strategy ring passes no state and takes no initial_state", "--strategy", "ring", "--ranks", "2");
        AssertRefused("takes no initial_state", "--no-causal");
        Write("q:F64:1,4,2,8 k:F64:1,4,2,8 v:F64:1,4,2,8");
        AssertRefused("q is F64, which runs on the cpu only", "--device", "cuda");
    }

    [Fact]
    public void A_file_that_is_no_safetensors_file_is_refused()
    {
        AssertRefused("no such file");
        File.WriteAllText(PathOf("in"), "this is not a safetensors file");
        AssertRefused("this is not a safetensors file");
        File.Delete(PathOf("in"));
        Directory.CreateDirectory(PathOf("in"));
        AssertRefused("it is a folder; give the path of a safetensors file");
    }

    [Fact]
    public void A_strategy_for_the_other_kind_of_attention_is_told_to_be_unused()
    {
        Write("q:F32:1,4,2,8 k:F32:1,4,2,8 v:F32:1,4,2,8");
        Assert.Equal("attend: --strategy ring is for linear attention and not used here; --softmax-strategy chooses here", Notes("--attention", "softmax", "--strategy", "ring")[0]);
        Assert.Equal("attend: --softmax-strategy ring is for softmax attention and not used here; --strategy chooses here", Notes("--softmax-strategy", "ring")[0]);
        Assert.Single(Notes("--attention", "softmax", "--strategy", "lasp2", "--softmax-strategy", "ring"));
        Assert.Single(Notes("--strategy", "ring"));
    }

    private string[] Notes(params string[] more)
    {
        LaspRun run = Lasp.Run(["attend", "--input", PathOf("in"), "--output", PathOf("out"), "--device", "cpu", .. more]);
        Assert.Equal(0, run.ExitCode);
        return run.ErrorLines;
    }

    private void AssertRefused(string expected, params string[] more)
    {
        string[] output = more.Contains("--output") ? [] : ["--output", PathOf("out")];
        string[] device = more.Contains("--device") ? [] : ["--device", "cpu"];
        LaspRun run = Lasp.Run(["attend", "--input", PathOf("in"), .. output, .. device, .. more]);
        Assert.Equal((1, ""), (run.ExitCode, run.Output));
        Assert.Contains(expected, Assert.Single(run.ErrorLines), StringComparison.Ordinal);
        Assert.False(File.Exists(PathOf("out")));
    }

    private void Write(string description, params (string Name, Tensor Tensor)[] more)
    {
        var tensors = more.ToDictionary(t => t.Name, t => t.Tensor, StringComparer.Ordinal);
        foreach (string[] parts in description.Split(' ', StringSplitOptions.RemoveEmptyEntries).Select(d => d.Split(':')))
        {
            tensors.Remove(parts[0]);
            if (parts[1] == "-") continue;
            var shape = new Shape([.. parts[2].Split(',').Select(long.Parse)]);
            tensors[parts[0]] = Zeros(Enum.Parse<DType>(parts[1]), shape);
        }
        SafetensorsWriter.Write(PathOf("in"), tensors.Select(t => (t.Key, t.Value)));
        foreach (Tensor tensor in tensors.Values) tensor.Dispose();
    }

    private Tensor Zeros(DType dtype, Shape shape) => dtype switch
    {
        DType.F64 => Tensor.FromSpan(new double[shape.Count], shape, _device),
        DType.F32 => Tensor.FromSpan(new float[shape.Count], shape, _device),
        DType.BF16 => Tensor.FromSpan(new BF16[shape.Count], shape, _device),
        DType.I64 => Tensor.FromSpan(new long[shape.Count], shape, _device),
        _ => Tensor.FromSpan(new int[shape.Count], shape, _device),
    };
}
