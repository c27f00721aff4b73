using LaspNative.Runtime;
using LaspNative.Runtime.Cpu;

namespace LaspNative.Perf;

/// <summary>One step of generation of a layer for many sequences at once: the states are read and written once, which is nearly all there is to move. All results of some sequences are compared with fp64.</summary>
internal sealed class DecodeProblem : Problem
{
    private const int HeadCount = 16;
    private const int Width = 128;
    private const int CheckedSequences = 4;
    private readonly int _sequences;
    private readonly double _scale = 1 / Math.Sqrt(Width);
    private Tensor _q = null!, _k = null!, _v = null!, _o = null!, _state = null!, _first = null!, _decay = null!;

    public DecodeProblem(int sequences)
    {
        _sequences = sequences;
        long row = (long)sequences * HeadCount * Width;
        Rows = [new Row($"linear decode B={sequences}", $"H={HeadCount} D=E={Width} bf16, fp32 states, per-head decay", _ => Step(), Error) { FloorBytes = (8 * row * Width) + (8 * row) }];
    }

    public override IReadOnlyList<Row> Rows { get; }

    protected override void Allocate()
    {
        Shape rows = [_sequences, HeadCount, Width], states = [_sequences, HeadCount, Width, Width];
        (_q, _k, _v, _o) = (Random(rows, 1), Random(rows, 2), Random(rows, 3), Empty(rows, DType.BF16));
        (_first, _state) = (Own(RandomTensors.Positive(Device, states, 4)), Empty(states, DType.F32));
        _decay = Own(RandomTensors.LogDecays(Device, [HeadCount], 0.5, 5));
        Restart();
    }

    private void Restart() => Device.Copy(_first.Pointer, _state.Pointer, _first.Bytes);

    private void Step() => Backend.LinearAttentionDecode(_q, _k, _v, _decay, _state, _scale, _o);

    private double Error()
    {
        Restart();
        RunPoisoned(_ => Step(), _o);
        RequireFinite(_o, _state);
        return Math.Max(ErrorFrom(0), ErrorFrom(_sequences - CheckedSequences));
    }

    private double ErrorFrom(int start)
    {
        using var cpu = new CpuDevice(Environment.ProcessorCount);
        using Tensor q = Widen(cpu, _q, start), k = Widen(cpu, _k, start), v = Widen(cpu, _v, start), state = Widen(cpu, _first, start);
        using Tensor decay = Tensor.FromSpan(_decay.ToDoubles(), _decay.Shape, cpu), o = Tensor.Zeros(q.Shape, DType.F64, cpu);
        cpu.Backend.LinearAttentionDecode(q, k, v, decay, state, _scale, o);
        using Tensor actual = _o.Slice(start, CheckedSequences), actualState = _state.Slice(start, CheckedSequences);
        return Math.Max(Heads.RelativeError([actual.ToDoubles()], [o.ToDoubles()]), Heads.RelativeError([actualState.ToDoubles()], [state.ToDoubles()]));
    }

    private static Tensor Widen(CpuDevice cpu, Tensor tensor, int start)
    {
        using Tensor rows = tensor.Slice(start, CheckedSequences);
        return Tensor.FromSpan(rows.ToDoubles(), rows.Shape, cpu);
    }
}
