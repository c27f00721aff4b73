using LaspNative.Autograd;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Diagnostics;

/// <summary>Who may see a tensor's memory: its owners, for as long as they are, whatever the device keeps for reuse.</summary>
public class TensorMemoryTests
{
    [Fact]
    public void A_disposed_tensor_never_sees_what_its_storage_serves_next()
    {
        using Device device = Device.Open("cpu:1");
        Tensor former = Tensor.FromSpan([1f, 2f], [2], device);
        former.Dispose();
        using Tensor next = Tensor.FromSpan([3f, 4f], [2], device);
        Assert.Throws<ObjectDisposedException>(() => former.Pointer);
        Assert.Throws<ObjectDisposedException>(() => former.Share());
        Assert.Throws<ObjectDisposedException>(() => former.View([1, 2]));
        Assert.Throws<ObjectDisposedException>(() => former.IsShared);
        Assert.Throws<ObjectDisposedException>(former.EvictMemory);
        Assert.Throws<ObjectDisposedException>(former.RestoreMemory);
        former.Dispose();
        former.Dispose();
        Assert.False(next.IsShared);
        Assert.Equal([3f, 4f], next.ToArray<float>());
        Assert.Equal((1, 8), (device.Memory.LiveCount, device.Memory.Current));
    }

    /// <summary>Two threads, one tensor: the second owner comes in time and has all of it, or is refused.</summary>
    [Fact]
    public void A_share_that_meets_a_dispose_is_whole_or_refused()
    {
        const int Tensors = 100_000;
        using Device device = Device.Open("cpu:1");
        Tensor[] all = [.. Enumerable.Range(0, Tensors).Select(_ => Tensor.Empty([2], DType.F32, device))];
        nint[] places = Array.ConvertAll(all, t => t.Pointer);
        int turn = -1, wrong = 0;
        var disposer = new Thread(() =>
        {
            for (int i = 0; i < Tensors; i++)
            {
                while (Volatile.Read(ref turn) < i) Thread.SpinWait(1);
                all[i].Dispose();
            }
        });
        disposer.Start();
        for (int i = 0; i < Tensors; i++)
        {
            Volatile.Write(ref turn, i);
            try
            {
                for (int n = 0; n < 8; n++)
                {
                    using Tensor second = all[i].Share();
                    if (second.Pointer != places[i]) wrong++;
                }
            }
            catch (ObjectDisposedException) { }
        }
        disposer.Join();
        Assert.Equal(0, wrong);
        Assert.Equal(0, device.Memory.LiveCount);
    }

    [Fact]
    public void Memory_goes_with_the_last_of_its_owners()
    {
        using Device device = Device.Open("cpu:1");
        Tensor whole = Tensor.FromSpan([1f, 2f, 3f, 4f, 5f, 6f], [2, 3], device), row = whole.Slice(1, 1), part = row.Part(1, [2, 1]);
        whole.Dispose();
        row.Dispose();
        using Tensor other = Tensor.FromSpan([7f], [1], device);
        Assert.Equal([5f, 6f], part.ToArray<float>());
        Assert.Equal(2, device.Memory.LiveCount);
        part.Dispose();
        Assert.Equal(1, device.Memory.LiveCount);
    }

    [Fact]
    public void Borrowed_memory_is_not_freed_and_its_storage_serves_owned_memory_next()
    {
        using Device device = Device.Open("cpu:1");
        using Tensor owner = Tensor.FromSpan([1f, 2f], [2], device);
        Tensor.WrapDevicePointer(owner.Pointer, [2], DType.F32, device).Dispose();
        Assert.Equal(1, device.Memory.LiveCount);
        Tensor.FromSpan([5f], [1], device).Dispose();
        Assert.Equal(1, device.Memory.LiveCount);
        Assert.Equal([1f, 2f], owner.ToArray<float>());
    }

    [Theory]
    [InlineData(-1, 2)]
    [InlineData(5, 2)]
    [InlineData(0, 7)]
    public void A_part_outside_is_refused(long start, long count)
    {
        using Device device = Device.Open("cpu:1");
        using Tensor x = Tensor.Zeros([2, 3], DType.F32, device);
        Assert.Contains("do not lie in a tensor of shape [2, 3]", Assert.Throws<LaspException>(() => x.Part(start, [count])).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_matrix_is_all_elements_of_its_tensor()
    {
        using Device device = Device.Open("cpu:1");
        using Tensor x = Tensor.Zeros([2, 3, 2, 2], DType.F32, device), batch = Tensor.Zeros([2, 3, 4], DType.F32, device);
        Assert.Equal((1, 6, 4), (Matrix.Of(x, 6, 4).Batches, Matrix.Of(x, 6, 4).Rows, Matrix.Of(x, 6, 4).Columns));
        Assert.Equal("F32 2 x [3, 4]", Matrix.From(batch).ToString());
        Assert.Contains("24 elements against 25", Assert.Throws<LaspException>(() => Matrix.Of(x, 5, 5)).Message, StringComparison.Ordinal);
        Assert.Contains("[2, 3, 2, 2] is no matrix", Assert.Throws<LaspException>(() => Matrix.From(x)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_projection_to_heads_and_back_gives_what_reshaping_gives()
    {
        using Device device = Device.Open("cpu:1");
        using Variable x = Variable.Parameter(Values([1, 3, 4], 1)), w = Variable.Parameter(Values([6, 4], 2)), back = Variable.Parameter(Values([4, 6], 3));
        double[][] heads = Gradients(h => Linear.Apply(Linear.Apply(h, w, [1, 3, 2, 3]), back, [1, 3, 4]));
        double[][] reshaped = Gradients(h => Linear.Apply(Reshape.Apply(Reshape.Apply(Linear.Apply(h, w), [1, 3, 2, 3]), [1, 3, 6]), back));
        Assert.Equal(reshaped, heads);
        Assert.Contains("as many rows of N", Assert.Throws<LaspException>(() => Linear.Apply(x, w, [1, 3, 4])).Message, StringComparison.Ordinal);
        Assert.Contains("as many rows of N", Assert.Throws<LaspException>(() => Linear.Apply(x, back, [1, 3, 4])).Message, StringComparison.Ordinal);

        double[][] Gradients(Func<Variable, Variable> op)
        {
            using Tensor dy = Values([1, 3, 4], 4);
            using (var tape = new Tape())
            {
                Variable y = op(x);
                double[] value = y.Value.ToDoubles();
                y.Backward(dy);
                double[][] all = [value, x.Gradient!.ToDoubles(), w.Gradient!.ToDoubles(), back.Gradient!.ToDoubles()];
                foreach (Variable leaf in (Variable[])[x, w, back]) leaf.ZeroGradient();
                return all;
            }
        }

        Tensor Values(Shape shape, int seed)
        {
            var random = new Random(seed);
            return Tensor.FromSpan([.. Enumerable.Range(0, (int)shape.Count).Select(_ => (float)(random.NextDouble() - 0.5))], shape, device);
        }
    }
}
