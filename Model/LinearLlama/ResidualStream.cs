using LaspNative.Autograd;

namespace LaspNative.Model;

/// <summary>
/// What flows from layer to layer: Sum + Branch, where the branch is what the last sub-layer made of the sum (null before the first). The addition is left to the norm that
/// reads the stream next, so that both are one pass over memory.
/// </summary>
internal readonly record struct ResidualStream(Variable Sum, Variable? Branch)
{
    /// <summary>The stream's value and its norm. The stream itself is spent: both variables are the caller's now.</summary>
    public (Variable Sum, Variable Normed) Norm(Variable? weight, double eps)
    {
        using (Sum)
        using (Branch) return AddRmsNorm.Apply(Sum, Branch, weight, eps);
    }

    /// <summary>The stream's value as one tensor: what is kept where a block is computed again. The stream is spent.</summary>
    public Variable Join()
    {
        if (Branch is null) return Sum;
        using (Sum)
        using (Branch) return Add.Apply(Sum, Branch);
    }
}
