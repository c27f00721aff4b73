namespace LaspNative.Runtime.Cuda;

/// <summary>Fill, casts, sums and activations of elementwise.cu.</summary>
internal sealed partial class CudaBackend
{
    private const string ElementwiseFile = "elementwise";

    public void Fill(double value, Tensor y)
    {
        RequireGpu(y);
        (string kernel, long bits) = y.DType switch
        {
            DType.F64 => ("fill_64", BitConverter.DoubleToInt64Bits(value)),
            DType.I64 => ("fill_64", (long)value),
            DType.F32 => ("fill_32", BitConverter.SingleToInt32Bits((float)value)),
            DType.I32 => ("fill_32", (int)value),
            _ => ("fill_16", ((BF16)(float)value).Bits),
        };
        Launch(ElementwiseFile, kernel, DType.F32, PerPack(y.Count), bits, y.Count, y.Pointer);
    }

    public void Cast(Tensor x, Tensor y)
    {
        RequireSameCount(x, y);
        RequireElement(x);
        RequireElement(y);
        Launch(ElementwiseFile, y.DType == DType.F32 ? "cast_to_f32" : "cast_to_bf16", x.DType, PerPack(x.Count), x.Pointer, x.Count, y.Pointer);
    }

    public void Add(Tensor a, Tensor b, Tensor y)
    {
        RequireElement(a);
        RequireSame(a, b);
        RequireSame(a, y);
        Launch(ElementwiseFile, "add", a.DType, PerPack(a.Count), a.Pointer, b.Pointer, a.Count, y.Pointer);
    }

    public void Scale(Tensor x, Tensor factor, Tensor y)
    {
        RequireElement(x);
        RequireSame(x, y);
        RequireNumber(factor);
        Launch(ElementwiseFile, "scale", x.DType, PerPack(x.Count), x.Pointer, factor.Pointer, x.Count, y.Pointer);
    }

    public void AddScaled(Tensor x, double alpha, Tensor y)
    {
        RequireSameCount(x, y);
        RequireElement(x);
        RequireElement(y);
        string kernel = y.DType == DType.F32 ? "add_scaled_to_f32" : "add_scaled_to_bf16";
        Launch(ElementwiseFile, kernel, x.DType, PerPack(x.Count), x.Pointer, (float)alpha, x.Count, y.Pointer);
    }

    public void Silu(Tensor x, Tensor y)
    {
        RequireElement(x);
        RequireSame(x, y);
        Launch(ElementwiseFile, "silu_fwd", x.DType, PerPack(x.Count), x.Pointer, x.Count, y.Pointer);
    }

    public void SiluBackward(Tensor x, Tensor dy, Tensor dx)
    {
        RequireElement(x);
        RequireSame(x, dy);
        RequireSame(x, dx);
        Launch(ElementwiseFile, "silu_bwd", x.DType, PerPack(x.Count), x.Pointer, dy.Pointer, x.Count, dx.Pointer);
    }

    public void GatedLinearUnit(Tensor gate, Tensor up, GateActivation activation, Tensor y)
    {
        RequireElement(gate);
        RequireSame(gate, up);
        RequireSame(gate, y);
        Launch(ElementwiseFile, "gated_linear_unit_fwd", gate.DType, PerPack(gate.Count), gate.Pointer, up.Pointer, UseSilu(activation), gate.Count, y.Pointer);
    }

    public void GatedLinearUnitBackward(Tensor gate, Tensor up, Tensor dy, GateActivation activation, Tensor dgate, Tensor dup, Tensor? y = null)
    {
        RequireElement(gate);
        RequireSame(gate, up);
        RequireSame(gate, dy);
        RequireSame(gate, dgate);
        RequireSame(gate, dup);
        if (y is not null) RequireSame(gate, y);
        Launch(
            ElementwiseFile, "gated_linear_unit_bwd", gate.DType, PerPack(gate.Count),
            gate.Pointer, up.Pointer, dy.Pointer, UseSilu(activation), gate.Count, dgate.Pointer, dup.Pointer, PointerOrNull(y));
    }

    private static int UseSilu(GateActivation activation) => activation == GateActivation.Silu ? 1 : 0;
}
