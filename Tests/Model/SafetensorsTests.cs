using System.Buffers.Binary;
using System.Text;
using LaspNative.Model;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Model;

/// <summary>Round trips, the exact bytes of a small file, and every way a header can be wrong.</summary>
public sealed class SafetensorsTests : IDisposable
{
    private readonly string _folder = Directory.CreateTempSubdirectory("lasp-safetensors-").FullName;

    public void Dispose() => Directory.Delete(_folder, recursive: true);

    private string PathOf(string name) => Path.Combine(_folder, name);

    [Fact]
    public void Every_element_type_survives_a_round_trip()
    {
        using Device device = Device.Open("cpu:1");
        using Tensor f64 = Tensor.FromSpan([1.5, double.NaN, -0.0], [3], device);
        using Tensor f32 = Tensor.FromSpan([1f, 2f, 3f, 4f, 5f, 6f], [2, 3], device);
        using Tensor bf16 = Tensor.FromSpan([(BF16)1.25f, (BF16)(-3f)], [1, 2, 1], device);
        using Tensor i64 = Tensor.FromSpan([long.MaxValue, 7L], [2], device);
        using Tensor i32 = Tensor.FromSpan([int.MinValue], [1], device);
        using Tensor empty = Tensor.FromSpan(Array.Empty<float>(), [0, 4], device);
        string path = PathOf("all.safetensors");
        SafetensorsWriter.Write(path, [("f32", f32), ("i32", i32), ("empty", empty), ("bf16", bf16), ("f64", f64), ("i64", i64)], new Dictionary<string, string>(StringComparer.Ordinal) { ["format"] = "lasp" });

        using SafetensorsFile file = SafetensorsFile.Open(path);
        Assert.Equal("lasp", file.Metadata["format"]);
        Assert.Equal(["f64", "i64", "empty", "f32", "i32", "bf16"], file.Names);
        Assert.Equal(new SafetensorsInfo(DType.F32, [2, 3]), file.Info("f32"));
        Assert.Equal(f64.ToArray<double>(), file.ReadArray<double>("f64"));
        Assert.Equal(f32.ToArray<float>(), file.ReadArray<float>("f32"));
        Assert.Equal(i64.ToArray<long>(), file.ReadArray<long>("i64"));
        Assert.Equal(i32.ToArray<int>(), file.ReadArray<int>("i32"));
        Assert.Empty(file.ReadArray<float>("empty"));
        using Tensor loaded = file.Load("bf16", device, MemoryCategory.States);
        Assert.Equal(bf16.ToArray<BF16>(), loaded.ToArray<BF16>());
        Assert.Equal(loaded.Bytes, device.Memory.CurrentOf(MemoryCategory.States));
        Assert.DoesNotContain(Directory.GetFiles(_folder), f => f.EndsWith(".partial", StringComparison.Ordinal));
    }

    [Fact]
    public void The_order_of_the_arguments_does_not_change_the_bytes()
    {
        using Device device = Device.Open("cpu:1");
        using Tensor a = Tensor.FromSpan([1f], [1], device);
        using Tensor b = Tensor.FromSpan([2f, 3f], [2], device);
        SafetensorsWriter.Write(PathOf("ab"), [("a", a), ("b", b)]);
        SafetensorsWriter.Write(PathOf("ba"), [("b", b), ("a", a)]);
        byte[] bytes = File.ReadAllBytes(PathOf("ab"));
        Assert.Equal(bytes, File.ReadAllBytes(PathOf("ba")));
        ulong header = BinaryPrimitives.ReadUInt64LittleEndian(bytes);
        Assert.Equal(0u, header % 8);
        Assert.Equal("""{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}""", Encoding.UTF8.GetString(bytes, 8, (int)header).TrimEnd());
        Assert.Equal(8 + (int)header + 12, bytes.Length);
    }

    [Theory]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", 4, "tensor 'a' ends at byte 8")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}""", 9, "1 bytes at the end belong to no tensor")]
    [InlineData("""{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}""", 8, "takes 12 bytes, but its data_offsets [0, 8] hold 8")]
    [InlineData("""{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}""", 8, "tensor 'a'")]
    [InlineData("""{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}""", 6, "tensor 'b' begins at byte 2 of the data and overlaps tensor 'a'")]
    [InlineData("""{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}""", 8, "a gap behind the header")]
    [InlineData("""{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}""", 8, "tensor 'a' is described twice")]
    [InlineData("""{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}""", 4, "not integers of 0 or more")]
    [InlineData("""{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,4]}}""", 4, "larger than any file")]
    [InlineData("""{"a":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}}""", 4, "unknown element type Q4")]
    [InlineData("""{"a":{"shape":[1],"data_offsets":[0,4]}}""", 4, "tensor 'a' has no dtype")]
    [InlineData("""{"a":{"dtype":"F32","data_offsets":[0,4]}}""", 4, "tensor 'a' has no shape")]
    [InlineData("""{"a":{"dtype":"F32","shape":[1],"data_offsets":[0]}}""", 4, "1 data_offsets")]
    [InlineData("""{"a":7}""", 0, "tensor 'a' is described by a JSON Number")]
    [InlineData("""[1]""", 0, "JSON Array")]
    [InlineData("""{"a":""", 0, "not valid JSON")]
    [InlineData("""{"__metadata__":{"x":1}}""", 0, "'x' is not a text")]
    public void A_wrong_header_is_refused_by_name(string header, int dataBytes, string expected)
    {
        string path = PathOf("wrong.safetensors");
        WriteRaw(path, (ulong)header.Length, header, dataBytes);
        AssertRefused(path, expected);
    }

    [Fact]
    public void A_length_that_cannot_be_is_refused()
    {
        WriteRaw(PathOf("long"), 1000, "{}", 0);
        AssertRefused(PathOf("long"), "reaches beyond the end of the file");
        WriteRaw(PathOf("huge"), ulong.MaxValue, "{}", 0);
        AssertRefused(PathOf("huge"), "over the format's limit");
        File.WriteAllBytes(PathOf("short"), [1, 2, 3]);
        AssertRefused(PathOf("short"), "3 bytes are too few");
        AssertRefused(PathOf("absent"), "no such file");
    }

    [Fact]
    public void Unsupported_and_missing_tensors_are_refused_when_they_are_asked_for()
    {
        string header = """{"half":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"deep":{"dtype":"I32","shape":[1,1,1,1,1,1],"data_offsets":[4,8]}}""";
        WriteRaw(PathOf("half"), (ulong)header.Length, header, 8);
        using SafetensorsFile file = SafetensorsFile.Open(PathOf("half"));
        Assert.Contains("tensor 'half' has element type F16", Assert.Throws<LaspException>(() => file.Info("half")).Message, StringComparison.Ordinal);
        Assert.Contains("6 dimensions", Assert.Throws<LaspException>(() => file.Info("deep")).Message, StringComparison.Ordinal);
        Assert.Contains("no tensor 'q'; the file has half, deep", Assert.Throws<LaspException>(() => file.Info("q")).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_failed_write_leaves_the_old_file_and_nothing_else()
    {
        using Device device = Device.Open("cpu:1");
        using Tensor a = Tensor.FromSpan([1f], [1], device);
        SafetensorsWriter.Write(PathOf("kept"), [("a", a)]);
        byte[] before = File.ReadAllBytes(PathOf("kept"));
        Assert.Contains("taken twice", Assert.Throws<LaspException>(() => SafetensorsWriter.Write(PathOf("kept"), [("a", a), ("a", a)])).Message, StringComparison.Ordinal);
        Assert.Contains("cannot be written", Assert.Throws<LaspException>(() => SafetensorsWriter.Write(PathOf("no/folder"), [("a", a)])).Message, StringComparison.Ordinal);
        Assert.Equal(before, File.ReadAllBytes(PathOf("kept")));
        Assert.Single(Directory.GetFiles(_folder));
    }

    private static void WriteRaw(string path, ulong length, string header, int dataBytes)
    {
        var prefix = new byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(prefix, length);
        File.WriteAllBytes(path, [.. prefix, .. Encoding.UTF8.GetBytes(header), .. new byte[dataBytes]]);
    }

    private static void AssertRefused(string path, string expected)
    {
        LaspException error = Assert.Throws<LaspException>(() => SafetensorsFile.Open(path).Dispose());
        Assert.StartsWith(path, error.Message, StringComparison.Ordinal);
        Assert.Contains(expected, error.Message, StringComparison.Ordinal);
        Assert.DoesNotContain('\n', error.Message);
    }
}
