using LaspNative.Runtime;

namespace LaspNative.Perf;

/// <summary>One line of the table: a call to time, what it must move or compute at the least, and the judgement of its results, which comes first.</summary>
/// <param name="Name">Stable over versions: records are compared by it, targets and peers are found by it.</param>
/// <param name="Call">Queues the work of one repetition; the argument rotates the inputs.</param>
/// <param name="Error">Runs the call and returns the worst relative error of its results against fp64; NaN or above <see cref="Bound"/> is wrong.</param>
internal sealed record Row(string Name, string Shape, Action<int> Call, Func<double> Error)
{
    /// <summary>
    /// The most that a right result errs by: bf16 operands and a result rounded to bf16 give a few 1e-3. It is a gross check on the very inputs that are timed;
    /// the tests hold every op to twice the error of the naive op in bf16.
    /// </summary>
    public const double Bound = 1e-2;

    /// <summary>The fewest bytes that the call can read and write; 0: no such figure.</summary>
    public long FloorBytes { get; init; }

    /// <summary>How far from the floor is told: as a multiple of the floor's time, or as a share of the copy bandwidth.</summary>
    public string FloorUnit { get; init; } = Units.TimesFloor;

    /// <summary>Floating-point operations by the formula that is usual for the call; 0: no such figure.</summary>
    public double Flops { get; init; }

    /// <summary>Whether memory beyond inputs and results is told.</summary>
    public bool TellsMemory { get; init; }
}

/// <summary>Rows that share inputs. Made without cost; <see cref="Open"/> takes the memory, on a device of its own so that its workspace is its own too.</summary>
internal abstract class Problem : IDisposable
{
    private readonly List<Tensor> _tensors = [];

    public abstract IReadOnlyList<Row> Rows { get; }

    protected Device Device { get; private set; } = null!;

    protected IBackend Backend => Device.Backend;

    public void Open(Device device)
    {
        Device = device;
        Allocate();
    }

    protected abstract void Allocate();

    protected Tensor Random(Shape shape, int seed) => Own(RandomTensors.Normal(Device, shape, seed));

    protected Tensor Empty(Shape shape, DType dtype) => Own(Tensor.Empty(shape, dtype, Device));

    protected Tensor Own(Tensor tensor)
    {
        _tensors.Add(tensor);
        return tensor;
    }

    /// <summary>Makes the call on results that are NaN before it, so that what stays unwritten shows.</summary>
    protected void RunPoisoned(Action<int> call, params ReadOnlySpan<Tensor?> results)
    {
        foreach (Tensor? result in results)
            if (result is not null) Backend.Fill(double.NaN, result);
        call(0);
    }

    /// <summary>Throws where an element anywhere in a result was left unwritten or is not finite: heads and rows that are not compared one by one are seen at least by this.</summary>
    protected void RequireFinite(params ReadOnlySpan<Tensor> results)
    {
        using Tensor sum = Tensor.Empty([1], DType.F32, Device);
        foreach (Tensor result in results)
        {
            Backend.Sum(result, sum);
            if (!double.IsFinite(sum.ToDoubles()[0])) throw new LaspException($"a result of shape {result.Shape} has elements that were not written or are not finite");
        }
    }

    public void Dispose()
    {
        foreach (Tensor tensor in _tensors) tensor.Dispose();
        _tensors.Clear();
    }
}
