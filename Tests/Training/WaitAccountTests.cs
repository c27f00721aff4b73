using LaspNative.Collectives;
using LaspNative.Model;
using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;
using LaspNative.Runtime.Cuda;
using Xunit;

namespace LaspNative.Tests.Training;

public class WaitAccountTests
{
    private sealed class Waiting(Action wait) : CommunicationWork
    {
        public override void Wait() => wait();
    }

    [Fact]
    public void A_thread_s_waits_are_on_the_account_of_their_own_step()
    {
        using var device = new CpuDevice(1);
        using WaitAccount account = WaitAccount.For(device);
        account.Measure(new Waiting(() => Thread.Sleep(30)));
        account.Measure(new Waiting(() => Thread.Sleep(30)));
        account.EndStep();
        account.EndStep();
        account.Measure(new Waiting(() => Thread.Sleep(5)));
        account.EndStep();
        Assert.True(account.TakeStep() >= TimeSpan.FromMilliseconds(55));
        Assert.Equal(TimeSpan.Zero, account.TakeStep());
        Assert.InRange(account.TakeStep(), TimeSpan.FromMilliseconds(4), TimeSpan.FromSeconds(2));
    }

    [Fact]
    [Trait("Category", "Gpu")]
    public void A_stream_s_waits_are_measured_where_they_stand_in_the_stream()
    {
        using CudaDevice device = Gpu.Open();
        using Tensor source = Tensor.Zeros([64L << 20], DType.F32, device), destination = Tensor.Empty([64L << 20], DType.F32, device);
        using WaitAccount account = WaitAccount.For(device);
        var late = new Waiting(() =>
        {
            for (int i = 0; i < 64; i++) device.Copy(source.Pointer, destination.Pointer, source.Bytes);
        });
        TimeSpan first = TimeSpan.MaxValue, second = TimeSpan.MaxValue, third = TimeSpan.MaxValue; // the least of several: others may use the GPU too
        for (int attempt = 0; attempt < 8; attempt++)
        {
            account.Measure(late);
            account.EndStep();
            device.Copy(source.Pointer, destination.Pointer, source.Bytes);
            account.Measure(new Waiting(() => { }));
            account.EndStep();
            Assert.Throws<LaspException>(() => account.Measure(new Waiting(() => throw new LaspException("enough")))); // is not on the account, nor is what runs after it
            late.Wait();
            account.Measure(new Waiting(() => { }));
            account.EndStep();
            first = Least(first, account.TakeStep());
            second = Least(second, account.TakeStep());
            third = Least(third, account.TakeStep());
        }
        Assert.True(first > 10 * second && first > 10 * third, $"64 copies took {first}, none {second}, and after a failure {third}");
        Assert.InRange(first, TimeSpan.FromMilliseconds(1), TimeSpan.FromSeconds(2));
    }

    private static TimeSpan Least(TimeSpan one, TimeSpan other) => one < other ? one : other;
}
