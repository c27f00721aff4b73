using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>
/// Which layers are linear and which softmax, as one word: L linear, N softmax ("normal") attention, repeated to the model's depth.
/// "LLLN" is the 1/4 hybrid of LASP-2, "L" a pure linear model, "N" a Llama.
/// </summary>
public static class LayerPattern
{
    /// <summary>One type per layer. Throws <see cref="LaspException"/> for a letter that is neither, and for a pattern longer than the model.</summary>
    public static IReadOnlyList<LayerType> Parse(string pattern, int layers)
    {
        ArgumentNullException.ThrowIfNull(pattern);
        if (pattern.Length == 0 || pattern.Any(letter => letter is not ('L' or 'N')))
            throw new LaspException($"layer pattern '{pattern}' is not known; use letters L (linear) and N (softmax), such as LLLN");
        if (pattern.Length > layers) throw new LaspException($"layer pattern {pattern} names {pattern.Length} layers but the model has {layers}; use a shorter one");
        return [.. Enumerable.Range(0, layers).Select(i => pattern[i % pattern.Length] == 'L' ? LayerType.LinearAttention : LayerType.FullAttention)];
    }
}
