using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;
using Xunit;

namespace LaspNative.Tests.Cli;

/// <summary>An attention call gives back all device memory that it took.</summary>
public class AttendMemoryTests
{
    [Fact]
    public void Nothing_is_left_on_a_rank_s_device()
    {
        string folder = Directory.CreateTempSubdirectory("lasp-attend-memory-").FullName;
        string input = Path.Combine(folder, "in");
        new AttendCase(DType.F32, 130, WithDecay: true) { WithStates = true }.Write(input);
        using (SafetensorsFile file = SafetensorsFile.Open(input))
        using (var host = new CpuDevice(threads: 1))
        {
            var inputs = new AttendInputs(file, AttentionKind.Linear, causal: true);
            using var outputs = new AttendOutputs(inputs, ranks: 3, host);
            World.Run(new WorldOptions(DeviceKind.Cpu, Ranks: 3), rank =>
            {
                long before = rank.Device.Memory.CurrentOf(MemoryCategory.Workspace);
                new AttendOnRank(rank, inputs, outputs, new AttendOptions { Input = input, Output = "" }).Run();
                rank.World.Barrier();
                Assert.Equal(rank.Device.Memory.CurrentOf(MemoryCategory.Workspace) - before, rank.Device.Memory.Current - before);
            });
        }
        Directory.Delete(folder, recursive: true);
    }
}
