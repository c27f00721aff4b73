using System.Runtime.InteropServices;
using LaspNative.Runtime;

namespace LaspNative.Autograd;

/// <summary>AdamW's constants. The defaults are LASP-2's (arXiv 2502.07563, section 4).</summary>
public sealed record AdamWOptions
{
    public double Beta1 { get; init; } = 0.9;

    public double Beta2 { get; init; } = 0.95;

    public double Epsilon { get; init; } = 1e-8;

    public double WeightDecay { get; init; } = 0.1;
}

/// <summary>One parameter under its name; norms and other vectors usually take no weight decay.</summary>
public sealed record NamedParameter(string Name, Variable Variable, bool Decays);

/// <summary>A tensor of an optimizer's state under its name. Borrowed: it belongs to the optimizer.</summary>
public readonly record struct NamedTensor(string Name, Tensor Tensor);

/// <summary>
/// Adam with decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), per parameter with gradient g:
/// m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,  w -= lr (m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) + wd w)
/// The moments and the master weights w are fp32 (fp64); a parameter of a narrower type is its master rounded, one of that type is its own master.
/// </summary>
public sealed class AdamW : IDisposable
{
    private sealed record Slot(NamedParameter Parameter, Tensor First, Tensor Second, Tensor Master)
    {
        public bool OwnsMaster => Parameter.Variable.DType != Master.DType;
    }

    private readonly AdamWOptions _options;
    private readonly List<Slot> _slots = [];
    private readonly AdamWRow[] _rows;
    private readonly Tensor[] _gradients;

    /// <param name="exactValue">
    /// The value of a narrower parameter before it was rounded, in any type; taken over. Null: masters start from the rounded values. From those, which all lie on the
    /// narrow type's grid, the first updates round the same way everywhere and are up to a quarter too large or small.
    /// </param>
    public AdamW(IReadOnlyList<NamedParameter> parameters, AdamWOptions options, Func<NamedParameter, Tensor>? exactValue = null)
    {
        ArgumentNullException.ThrowIfNull(parameters);
        ArgumentNullException.ThrowIfNull(options);
        _options = options;
        _rows = new AdamWRow[parameters.Count];
        _gradients = new Tensor[parameters.Count];
        foreach (NamedParameter parameter in parameters)
        {
            Tensor value = parameter.Variable.Value;
            DType acc = value.DType.Accumulator();
            Tensor master = value.DType == acc ? value.Share() : Tensor.Empty(value.Shape, acc, value.Device, MemoryCategory.Optimizer);
            if (value.DType != acc)
            {
                using Tensor start = exactValue?.Invoke(parameter) ?? value.Share();
                value.Device.Backend.Cast(start, master);
            }
            _slots.Add(new Slot(
                parameter,
                Tensor.Zeros(value.Shape, acc, value.Device, MemoryCategory.Optimizer),
                Tensor.Zeros(value.Shape, acc, value.Device, MemoryCategory.Optimizer),
                master));
        }
    }

    /// <summary>Updates made so far.</summary>
    public long StepCount { get; private set; }

    /// <summary>Adds the sum of squares over all gradients, before any scale, to <paramref name="sum"/> [1], fp32 (fp64): its root is the global norm.</summary>
    public void AddSquaredNorm(Tensor sum)
    {
        ArgumentNullException.ThrowIfNull(sum);
        int count = 0;
        foreach (Slot slot in _slots)
            if (slot.Parameter.Variable.Gradient is { } gradient) _gradients[count++] = gradient;
        sum.Device.Backend.AddSumOfSquares(_gradients.AsSpan(0, count), sum);
        _gradients.AsSpan(0, count).Clear();
    }

    /// <summary>Updates every parameter that has a gradient. The gradients stay; free them with <see cref="ZeroGradients"/>.</summary>
    /// <param name="gradientScale">
    /// Multiplies every gradient first, [1] in fp32 (fp64), read by the device alone: <see cref="GradientClipping.Factor"/>. NaN: nothing changes. Null: 1.
    /// </param>
    public void Step(double learningRate, Tensor? gradientScale = null)
    {
        StepCount++;
        Update(.., learningRate, gradientScale);
    }

    /// <summary>As <see cref="Step"/>, in two launches (three where the first parameters have others before and behind them); <paramref name="between"/> is called behind the first, and what it starts for its parameters need not wait for the others.</summary>
    /// <param name="first">The parameters of the first launch, by their places in the list given to the constructor.</param>
    public void StepInTwo(double learningRate, Tensor? gradientScale, Range first, Action between)
    {
        ArgumentNullException.ThrowIfNull(between);
        StepCount++;
        (int start, int count) = first.GetOffsetAndLength(_slots.Count);
        Update(first, learningRate, gradientScale);
        between();
        Update(..start, learningRate, gradientScale);
        Update((start + count).., learningRate, gradientScale);
    }

    private void Update(Range range, double learningRate, Tensor? gradientScale)
    {
        int count = 0;
        foreach ((NamedParameter parameter, Tensor first, Tensor second, Tensor master) in CollectionsMarshal.AsSpan(_slots)[range])
        {
            if (parameter.Variable.Gradient is not { } gradient) continue;
            _rows[count++] = new AdamWRow(gradient, first, second, master, parameter.Variable.Value, parameter.Decays ? _options.WeightDecay : 0);
        }
        if (count == 0) return;
        var step = new AdamWStep(learningRate, _options.Beta1, _options.Beta2, _options.Epsilon, StepCount);
        _rows[0].Master.Device.Backend.AdamW(_rows.AsSpan(0, count), step, gradientScale);
        _rows.AsSpan(0, count).Clear();
    }

    public void ZeroGradients()
    {
        foreach (Slot slot in _slots) slot.Parameter.Variable.ZeroGradient();
    }

    /// <summary>
    /// The state that a checkpoint holds beside the parameters: NAME.exp_avg, NAME.exp_avg_sq and, for a parameter of a narrower type, NAME.master; all fp32 (fp64).
    /// <see cref="StepCount"/> belongs to it.
    /// </summary>
    public IReadOnlyList<NamedTensor> ExportState()
    {
        var state = new List<NamedTensor>(3 * _slots.Count);
        foreach (Slot slot in _slots)
        {
            string[] names = StateNames(slot.Parameter);
            state.Add(new NamedTensor(names[0], slot.First));
            state.Add(new NamedTensor(names[1], slot.Second));
            if (slot.OwnsMaster) state.Add(new NamedTensor(names[2], slot.Master));
        }
        return state;
    }

    /// <summary>The names under which <see cref="ExportState"/> gives the state of a parameter.</summary>
    public static string[] StateNames(NamedParameter parameter)
    {
        ArgumentNullException.ThrowIfNull(parameter);
        string[] moments = [parameter.Name + ".exp_avg", parameter.Name + ".exp_avg_sq"];
        DType type = parameter.Variable.DType;
        return type == type.Accumulator() ? moments : [.. moments, parameter.Name + ".master"];
    }

    /// <summary>
    /// Continues from an exported state: copies what <paramref name="find"/> returns for each name (it stays the caller's) and rounds the masters into their parameters.
    /// Parameters that are their own masters must be loaded by the caller.
    /// </summary>
    public void ImportState(long stepCount, Func<string, Tensor?> find)
    {
        ArgumentNullException.ThrowIfNull(find);
        foreach ((string name, Tensor target) in ExportState())
        {
            Tensor source = find(name) ?? throw new LaspException($"the optimizer state has no tensor '{name}'; it belongs to another model or is incomplete");
            if (source.Shape != target.Shape) throw new LaspException($"'{name}' of the optimizer state has shape {source.Shape}, the model needs {target.Shape}; use the checkpoint's own config");
            target.Device.Backend.Cast(source, target);
        }
        foreach (Slot slot in _slots)
        {
            if (slot.OwnsMaster) slot.Master.Device.Backend.Cast(slot.Master, slot.Parameter.Variable.Value);
        }
        StepCount = stepCount;
    }

    public void Dispose()
    {
        foreach (Slot slot in _slots)
        {
            slot.First.Dispose();
            slot.Second.Dispose();
            slot.Master.Dispose();
        }
        _slots.Clear();
    }
}
