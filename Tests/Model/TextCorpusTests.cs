using System.Text;
using LaspNative.Model;
using LaspNative.Runtime;
using Xunit;

namespace LaspNative.Tests.Model;

/// <summary>Which files are read, in which order, and what becomes of their ends.</summary>
public class TextCorpusTests
{
    private static TextCorpus Read(string path, string? output = null) => TextCorpus.Read([path], new ByteTokenizer(), output);

    private static string TextOf(TokenStream stream)
    {
        var tokens = new int[stream.Count];
        stream.Read(0, tokens, new int[stream.Count]);
        return Encoding.UTF8.GetString(Array.ConvertAll(tokens, t => (byte)t));
    }

    [Fact]
    public void Folders_are_read_recursively_in_ordinal_order()
    {
        using var folder = new TemporaryFolder();
        folder.Write("b.txt", "[b]");
        folder.Write("B.txt", "[B]");
        folder.Write("a/z.txt", "[a/z]");
        folder.Write("a.txt", "[a.txt]");
        folder.Write("a/sub/x.cs", "[a/sub/x]");
        Assert.Equal("[B][a.txt][a/sub/x][a/z][b]", TextOf(Read(folder.Path).Tokens));
    }

    [Fact]
    public void What_is_not_text_is_left_out()
    {
        using var folder = new TemporaryFolder();
        folder.Write("keep.txt", "kept");
        foreach (string skipped in (string[])[".git/x", "sub/.hidden/x", "bin/x", "sub/obj/x", "artifacts/x", "out/checkpoint-5/config.json", "runs/other/metrics.jsonl", "runs/other/notes.txt"])
            folder.Write(skipped, "skipped");
        folder.Write("binary", "a\0b");
        folder.Write("late-nul", new string('x', 8192) + "\0");
        folder.Write("empty", "");
        TextCorpus corpus = Read(folder.Path, folder["out"]);
        Assert.Equal("kept" + new string('x', 8192) + "\0", TextOf(corpus.Tokens));
        Assert.Equal(1, corpus.BinaryFiles);
        Assert.Equal(2, corpus.Documents);
    }

    [Fact]
    public void A_file_may_be_named_directly_and_paths_keep_their_order()
    {
        using var folder = new TemporaryFolder();
        string b = folder.Write("b", "bb"), a = folder.Write("a", "aa");
        Assert.Equal("bbaa", TextOf(TextCorpus.Read([b, a], new ByteTokenizer()).Tokens));
    }

    [Fact]
    public void Missing_or_empty_data_is_one_clear_line()
    {
        using var folder = new TemporaryFolder();
        Assert.Contains("does not exist", Assert.Throws<LaspException>(() => Read(folder["nowhere"])).Message, StringComparison.Ordinal);
        folder.Write("binary", "\0");
        Assert.Contains("1 binary files skipped", Assert.Throws<LaspException>(() => Read(folder.Path)).Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_documents_last_token_has_no_label_and_the_stream_is_circular()
    {
        var stream = new TokenStream([[1, 2, 3], [], [4], [5, 6]]);
        int[] tokens = new int[9], labels = new int[9];
        stream.Read(1, tokens, labels);
        Assert.Equal([2, 3, 4, 5, 6, 1, 2, 3, 4], tokens);
        Assert.Equal([3, -100, -100, 6, -100, 2, 3, -100, -100], labels);
        stream.Read(4, tokens.AsSpan(0, 2), labels.AsSpan(0, 2));
        Assert.Equal([5, 6], tokens[..2]);
        Assert.Equal([6, -100], labels[..2]);
        stream.Read(0, tokens.AsSpan(0, 2), labels.AsSpan(0, 2));
        Assert.Equal([2, 3], labels[..2]); // the label of a window's last token lies outside the window
    }

    [Fact]
    public void The_fingerprint_tells_texts_apart()
    {
        ulong print = new TokenStream([[1, 2, 3], [4]]).Fingerprint;
        Assert.Equal(print, new TokenStream([[1, 2, 3], [4]]).Fingerprint);
        Assert.NotEqual(print, new TokenStream([[1, 2], [3, 4]]).Fingerprint);
        Assert.NotEqual(print, new TokenStream([[1, 3, 2], [4]]).Fingerprint);
    }
}
