using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Cuda;

/// <summary>The processors beside a GPU, as the kernel's files name them, and a thread that stays on them.</summary>
public sealed class NumaNodeTests : IDisposable
{
    private const string Address = "0000:1B:00.0";
    private readonly string _sysfs = Directory.CreateTempSubdirectory("lasp-numa-").FullName;

    public void Dispose() => Directory.Delete(_sysfs, recursive: true);

    [Fact]
    public void A_thread_stays_on_the_node_and_gets_its_processors_back()
    {
        string before = Allowed(), first = before.Split(',', '-')[0];
        Describe("0-1", "1", ("node0", "8190"), ("node1", $"{first},8191"));
        using (NumaNode.Of(Address, _sysfs)!.Enter()) Assert.Equal(first, Allowed());
        Assert.Equal(before, Allowed());
    }

    /// <summary>What the container or the user has chosen stands.</summary>
    [Fact]
    public void A_thread_that_may_use_none_of_them_stays_where_it_is()
    {
        string before = Allowed();
        Describe("0,1", "1", ("node1", "8000-8191"));
        using (NumaNode.Of(Address, _sysfs)!.Enter()) Assert.Equal(before, Allowed());
        Assert.Equal(before, Allowed());
    }

    [Theory]
    [InlineData("0", "0")] // one node
    [InlineData("0-1", "-1")] // nobody knows
    [InlineData("0-1", "1")] // a node without a list of processors
    public void No_node_is_named(string online, string node)
    {
        Describe(online, node, ("node0", "0-7"));
        Assert.Null(NumaNode.Of(Address, _sysfs));
    }

    [Fact]
    public void Nor_without_the_files() => Assert.Null(NumaNode.Of(Address, _sysfs));

    private void Describe(string online, string node, params (string Name, string Processors)[] nodes)
    {
        string device = Path.Combine(_sysfs, "bus/pci/devices", Address.ToLowerInvariant()), all = Path.Combine(_sysfs, "devices/system/node");
        Directory.CreateDirectory(device);
        Directory.CreateDirectory(all);
        File.WriteAllText(Path.Combine(device, "numa_node"), node + "\n");
        File.WriteAllText(Path.Combine(all, "online"), online + "\n");
        foreach ((string name, string processors) in nodes) File.WriteAllText(Path.Combine(Directory.CreateDirectory(Path.Combine(all, name)).FullName, "cpulist"), processors + "\n");
    }

    /// <summary>The calling thread's processors as the kernel lists them.</summary>
    private static string Allowed()
    {
        if (!OperatingSystem.IsLinux()) Assert.Skip("threads are kept on processors on Linux");
        return File.ReadLines("/proc/thread-self/status").Single(line => line.StartsWith("Cpus_allowed_list:", StringComparison.Ordinal)).Split(':')[1].Trim();
    }
}
