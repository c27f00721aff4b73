using System.Collections.Concurrent;
using LaspNative.Autograd;
using LaspNative.Runtime;
using LaspNative.Tests.Oracles;
using Xunit;

namespace LaspNative.Tests.Backends;

/// <summary>How an operand's type follows from the case's element type T.</summary>
public enum OperandKind
{
    T,
    Acc,
    I32,
    I64,
    F32,
}

/// <summary>One tensor of a backend call. Without values it is an output, poisoned before the call; with values an input, or a destination that is added to or changed in place.</summary>
public sealed record Operand(string Name, Shape Shape, OperandKind Kind, double[]? Values = null)
{
    public DType DType(DType element) => Kind switch
    {
        OperandKind.T => element,
        OperandKind.Acc => element.Accumulator(),
        OperandKind.I64 => Runtime.DType.I64,
        OperandKind.F32 => Runtime.DType.F32,
        _ => Runtime.DType.I32,
    };
}

/// <summary>
/// One row of the table of ops: operands, the call, and what fp64 says of the results. It is the op's forward parity on every device and type and,
/// where <see cref="Apply"/> is given, the gradient check of its autograd function.
/// </summary>
public sealed class OpCase
{
    /// <summary>A result of fewer values than this says little by its own naive error, which is one draw: a sum that happens to come out well would forbid what is usual.</summary>
    private const int FewValues = 64;

    /// <summary>Sets of inputs over which the naive error of a result of few values is taken.</summary>
    private const int Draws = 6;

    /// <param name="Expected">In fp64.</param>
    /// <param name="NaiveErrors">Norm of the naive op's error in bf16, for results that it gives; over several draws where a result has few values.</param>
    private sealed record References(Dictionary<string, double[]> Expected, Dictionary<string, double> NaiveErrors);

    private readonly ConcurrentDictionary<DType, Lazy<References>> _references = new();

    public required Operand[] Operands { get; init; }

    public required Action<IBackend, Func<string, Tensor>> Call { get; init; }

    /// <summary>Results by operand name, from the operands' values as they are stored.</summary>
    public required Func<Func<string, double[]>, Dictionary<string, double[]>> Oracle { get; init; }

    /// <summary>What the naive op in bf16 gives for some of the results; for the others it is the oracle's result rounded.</summary>
    public Func<Func<string, double[]>, Dictionary<string, double[]>>? NaiveBf16 { get; init; }

    /// <summary>The autograd function over the same operands; those of type T with values are differentiated.</summary>
    public Func<Func<string, Variable>, Variable>? Apply { get; init; }

    /// <summary>Computes what the oracles say, once, on whichever thread comes first; later callers wait for it.</summary>
    public void Prepare(DType element) => _ = ReferencesOf(element);

    /// <summary>Runs the call on guarded memory: each result must be close to the oracle's and, when it runs twice, the same bits both times.</summary>
    public void AssertParity(Device device, DType element, bool misaligned = false, bool twice = true)
    {
        (Dictionary<string, double[]> expected, Dictionary<string, double> naive) = ReferencesOf(element);
        Dictionary<string, double[]> actual = Run(device, element, misaligned);
        foreach ((string name, double[] values) in expected)
        {
            Operand operand = Operands.Single(o => o.Name == name);
            Errors.AssertClose(actual[name], values, Tolerance(operand, element, values, naive.TryGetValue(name, out double error) ? error : null), $"{name} {operand.Shape}");
        }
        if (!twice) return;
        Dictionary<string, double[]> again = Run(device, element, misaligned);
        foreach (string name in expected.Keys) Assert.True(actual[name].AsSpan().SequenceEqual(again[name]), $"{name} has other bits in a second run");
    }

    private References ReferencesOf(DType element) => _references.GetOrAdd(element, e => new Lazy<References>(() => ComputeReferences(e))).Value;

    private References ComputeReferences(DType element)
    {
        var stored = Operands.Where(o => o.Values is not null).ToDictionary(o => o.Name, o => TestData.Rounded(o.Values!, o.DType(element)));
        Dictionary<string, double[]> expected = Oracle(name => stored[name]);
        if (element != DType.BF16 || NaiveBf16 is null) return new References(expected, []);
        Dictionary<string, double[]> naive = NaiveBf16(name => stored[name]);
        var errors = naive.Where(n => expected.ContainsKey(n.Key)).ToDictionary(n => n.Key, n => Distance(n.Value, expected[n.Key]));
        string[] few = [.. errors.Keys.Where(n => expected[n].Length < FewValues)];
        if (few.Length == 0) return new References(expected, errors);
        var squares = few.ToDictionary(n => n, n => errors[n] * errors[n]);
        var draws = new Dictionary<string, double>[Draws];
        Parallel.For(1, Draws, draw =>
        {
            Dictionary<string, double[]> inputs = Turned(stored, draw), right = Oracle(name => inputs[name]), rough = NaiveBf16(name => inputs[name]);
            draws[draw] = few.ToDictionary(n => n, n => Math.Pow(Distance(rough[n], right[n]), 2));
        });
        foreach (Dictionary<string, double> draw in draws.Skip(1))
            foreach (string name in few) squares[name] += draw[name];
        foreach (string name in few) errors[name] = Math.Sqrt(squares[name] / Draws);
        return new References(expected, errors);
    }

    /// <summary>Other inputs of the same distribution: those of type T turned by another amount each, so that other values meet.</summary>
    private Dictionary<string, double[]> Turned(Dictionary<string, double[]> stored, int draw)
    {
        var turned = new Dictionary<string, double[]>(stored);
        foreach ((int index, Operand operand) in Operands.Index())
        {
            if (operand is not { Kind: OperandKind.T, Values.Length: > 0 }) continue;
            double[] values = stored[operand.Name];
            int by = (int)((draw * 7919L + index * 104729L) % values.Length);
            turned[operand.Name] = [.. values[by..], .. values[..by]];
        }
        return turned;
    }

    private static double Distance(double[] a, double[] b) => Math.Sqrt(a.Zip(b, (x, y) => double.IsInfinity(y) && x == y ? 0 : (x - y) * (x - y)).Sum());

    private static double Tolerance(Operand operand, DType element, double[] expected, double? naiveError)
    {
        if (!operand.DType(element).IsFloat()) return 0;
        if (element != DType.BF16) return Tolerances.Of(element);
        if (operand.Kind != OperandKind.T && naiveError is null) return Tolerances.Of(element.Accumulator());
        double norm = Math.Sqrt(expected.Where(double.IsFinite).Sum(x => x * x)); // relative errors are absolute where nothing is expected
        return Tolerances.Bf16(naiveError is { } error ? (norm > 0 ? error / norm : error) : Errors.Relative(TestData.Rounded(expected, element), expected));
    }

    /// <summary>Makes the call on guarded memory; the results are not judged.</summary>
    public void Run(Device device, DType element) => Run(device, element, misaligned: false);

    private Dictionary<string, double[]> Run(Device device, DType element, bool misaligned)
    {
        using var memory = new GuardedTensors(device, misaligned);
        var tensors = Operands.ToDictionary(o => o.Name, o => memory.New(o.Shape, o.DType(element), o.Values));
        Call(device.Backend, name => tensors[name]);
        device.Synchronize();
        memory.AssertBandsUntouched();
        return tensors.ToDictionary(t => t.Key, t => Values(t.Value));
    }

    private static double[] Values(Tensor tensor) => tensor.DType switch
    {
        DType.I64 => Array.ConvertAll(tensor.ToArray<long>(), x => (double)x),
        DType.I32 => Array.ConvertAll(tensor.ToArray<int>(), x => (double)x),
        _ => tensor.ToDoubles(),
    };

    /// <summary>Compares the gradients of dy . Apply(..) for a random dy with central differences, in fp64 on the CPU.</summary>
    public void AssertGradients()
    {
        using Device device = Device.Open("cpu:1");
        Dictionary<string, double[]> gradients = Gradients(device, DType.F64);
        foreach ((string name, double[] gradient) in gradients) Errors.AssertClose(gradient, Differences(device, name), Tolerances.GradientCheck, $"gradient of {name}");
        Assert.NotEmpty(gradients);
    }

    /// <summary>Compares the gradients in F32 on a device with those in F64 on the CPU.</summary>
    public void AssertSameGradients(Device device)
    {
        using Device cpu = Device.Open("cpu:1");
        Dictionary<string, double[]> expected = Gradients(cpu, DType.F64);
        foreach ((string name, double[] gradient) in Gradients(device, DType.F32)) Errors.AssertClose(gradient, expected[name], 2 * Tolerances.Of(DType.F32), $"gradient of {name}");
    }

    private static double[] OutputGradient(Variable output) => TestData.Normal(output.Shape.Count, seed: 99);

    private Dictionary<string, double[]> Gradients(Device device, DType element)
    {
        Dictionary<string, double[]> gradients = [];
        RunApply(device, element, [], (inputs, output) =>
        {
            using Tensor dy = TestData.Tensor(OutputGradient(output), output.Shape, output.DType, device);
            output.Backward(dy);
            foreach ((string name, Variable input) in inputs)
                if (input.RequiresGradient) gradients[name] = input.Gradient!.ToDoubles();
        });
        return gradients;
    }

    private double[] Differences(Device device, string name)
    {
        const double Step = 1e-5;
        double[] at = Operands.Single(o => o.Name == name).Values!;
        var differences = new double[at.Length];
        for (int i = 0; i < at.Length; i++)
        {
            double Loss(double x)
            {
                double[] moved = [.. at];
                moved[i] = x;
                double loss = 0;
                RunApply(device, DType.F64, new() { [name] = moved }, (_, output) => loss = output.Value.ToDoubles().Zip(OutputGradient(output), (y, d) => y * d).Sum());
                return loss;
            }
            differences[i] = (Loss(at[i] + Step) - Loss(at[i] - Step)) / (2 * Step);
        }
        return differences;
    }

    private void RunApply(Device device, DType element, Dictionary<string, double[]> replaced, Action<Dictionary<string, Variable>, Variable> body)
    {
        Dictionary<string, Variable> inputs = [];
        foreach (Operand o in Operands.Where(o => o.Values is not null))
        {
            double[] values = replaced.GetValueOrDefault(o.Name, o.Values!);
            inputs[o.Name] = o.Kind switch
            {
                OperandKind.I64 => Variable.Constant(Tensor.FromSpan(Array.ConvertAll(values, x => (long)x), o.Shape, device)),
                OperandKind.I32 => Variable.Constant(Tensor.FromSpan(Array.ConvertAll(values, x => (int)x), o.Shape, device)),
                OperandKind.Acc => Variable.Constant(TestData.Tensor(values, o.Shape, o.DType(element), device)),
                _ => Variable.Parameter(TestData.Tensor(values, o.Shape, element, device)),
            };
        }
        using Variable result = Apply!(name => inputs[name]);
        body(inputs, result);
        foreach (Variable input in inputs.Values) input.Dispose();
    }
}
