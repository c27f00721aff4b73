using LaspNative.Runtime;

namespace LaspNative.Model;

/// <summary>Turns the bytes of a document into token ids.</summary>
public abstract class Tokenizer
{
    public abstract string Name { get; }

    /// <summary>Ids lie in [0, VocabularySize).</summary>
    public abstract int VocabularySize { get; }

    public abstract int[] Encode(ReadOnlySpan<byte> document);

    /// <summary>The tokenizer that a user named. Throws <see cref="LaspException"/> for one that does not exist.</summary>
    public static Tokenizer Parse(string name) => name == "bytes"
        ? new ByteTokenizer()
        : throw new LaspException($"tokenizer '{name}' is not available; use bytes");
}

/// <summary>Every byte is a token: 256 of them, nothing to train, nothing unknown.</summary>
public sealed class ByteTokenizer : Tokenizer
{
    public override string Name => "bytes";

    public override int VocabularySize => 256;

    public override int[] Encode(ReadOnlySpan<byte> document)
    {
        var tokens = new int[document.Length];
        for (int i = 0; i < tokens.Length; i++) tokens[i] = document[i];
        return tokens;
    }
}
