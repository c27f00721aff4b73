using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using System.Numerics;

namespace LaspNative.Cli;

/// <summary>Options whose wrong values are refused in one line that names the option, the value and what would do.</summary>
internal static class OptionKinds
{
    /// <summary>One of a few words.</summary>
    public static Option<string?> Choice(string name, string description, params string[] values) => new(name)
    {
        Description = description,
        HelpName = string.Join('|', values),
        CustomParser = result => Parse(result, text => values.Contains(text, StringComparer.Ordinal) ? (true, text) : (false, null), $"use {string.Join(", ", values)}"),
    };

    /// <summary>A whole number of at least <paramref name="minimum"/>; null when it is not given.</summary>
    public static Option<T?> Whole<T>(string name, string description, string letter, T minimum) where T : struct, IBinaryInteger<T> => new(name)
    {
        Description = description,
        HelpName = letter,
        CustomParser = result => Parse<T?>(
            result,
            text => (T.TryParse(text, NumberStyles.AllowLeadingSign, CultureInfo.InvariantCulture, out T value) && value >= minimum, value),
            $"give a whole number of {minimum} or more"),
    };

    /// <summary>A finite number; null when it is not given.</summary>
    public static Option<double?> Number(string name, string description, string letter, double minimum = double.NegativeInfinity) => new(name)
    {
        Description = description,
        HelpName = letter,
        CustomParser = result => Parse<double?>(
            result,
            text => (double.TryParse(text, NumberStyles.Float, CultureInfo.InvariantCulture, out double value) && double.IsFinite(value) && value >= minimum, value),
            double.IsFinite(minimum) ? $"give a number of {minimum.ToString(CultureInfo.InvariantCulture)} or more" : "give a finite number"),
    };

    public static Option<string?> Text(string name, string description, string letter) => new(name)
    {
        Description = description,
        HelpName = letter,
        CustomParser = result => Parse<string?>(result, text => (text.Length > 0 && !LooksLikeOption(text), text), $"give {letter}"),
    };

    /// <summary>A word of a certain form, and what to do about any other.</summary>
    public static Option<string?> Parsed(string name, string description, string form, Func<string, bool> isValid, string remedy) => new(name)
    {
        Description = description,
        HelpName = form,
        CustomParser = result => Parse(result, text => isValid(text) ? (true, text) : (false, null), remedy),
    };

    /// <summary>One or more words after the option; a word that looks like an option is an unknown option, not a value.</summary>
    public static Option<string[]> Texts(string name, string description, string letter)
    {
        var option = new Option<string[]>(name)
        {
            Description = description,
            HelpName = letter,
            Arity = ArgumentArity.OneOrMore,
            AllowMultipleArgumentsPerToken = true,
        };
        option.Validators.Add(result =>
        {
            if (result.Tokens.FirstOrDefault(t => LooksLikeOption(t.Value)) is { } token) result.AddError($"unknown option '{token.Value}'");
        });
        return option;
    }

    private static bool LooksLikeOption(string text) => text.StartsWith("--", StringComparison.Ordinal);

    private static T? Parse<T>(ArgumentResult result, Func<string, (bool Valid, T? Value)> parse, string remedy)
    {
        string text = result.Tokens[0].Value;
        (bool valid, T? value) = parse(text);
        if (valid) return value;
        result.AddError($"{(result.Parent as OptionResult)?.IdentifierToken?.Value} is '{text}'; {remedy}");
        return default;
    }
}
