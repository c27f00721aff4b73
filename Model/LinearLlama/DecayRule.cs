namespace LaspNative.Model;

/// <summary>How strongly each head of a linear layer forgets per token. Fixed numbers: nothing is learned.</summary>
public enum DecayRule
{
    /// <summary>Nothing is forgotten.</summary>
    None,

    /// <summary>Lightning Attention and TransNormerLLM: ALiBi-like slopes, weaker in deeper layers.</summary>
    Lightning,

    /// <summary>Retention (RetNet): the same slopes in every layer.</summary>
    Retention,
}

public static class DecayRules
{
    /// <summary>
    /// Log decay g_h of each head, to be added per token: a_h = exp(g_h). Null for <see cref="DecayRule.None"/>.
    /// Lightning: g_h = -2^(-8 (h+1) / H) (1 - layer / (layers - 1) + 1e-5) (TransNormerLLM, section 3.1). Retention: g_h = ln(1 - 2^(-5-h)).
    /// </summary>
    public static double[]? LogDecay(this DecayRule rule, int heads, int layer, int layers)
    {
        if (rule == DecayRule.None) return null;
        double depth = layers > 1 ? 1 - (double)layer / (layers - 1) + 1e-5 : 1;
        var decay = new double[heads];
        for (int h = 0; h < heads; h++)
            decay[h] = rule == DecayRule.Lightning ? -Math.Pow(2, -8.0 * (h + 1) / heads) * depth : Math.Log(1 - Math.Pow(2, -5 - h));
        return decay;
    }
}
