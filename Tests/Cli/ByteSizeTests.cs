using LaspNative.Cli;
using Xunit;

namespace LaspNative.Tests.Cli;

/// <summary>Sizes as people write them.</summary>
public class ByteSizeTests
{
    [Theory]
    [InlineData("0", 0L)]
    [InlineData("123", 123L)]
    [InlineData("7B", 7L)]
    [InlineData("80GiB", 80L << 30)]
    [InlineData("1.5 GB", 1_500_000_000L)]
    [InlineData("512mib", 512L << 20)]
    [InlineData("2KB", 2000L)]
    [InlineData("-1GB", null)]
    [InlineData("GB", null)]
    [InlineData("", null)]
    [InlineData("12 TiB?", null)]
    [InlineData("1e9", null)]
    [InlineData("99999999999GiB", null)]
    public void Sizes_are_read(string text, long? bytes) => Assert.Equal(bytes, ByteSize.Parse(text));
}
