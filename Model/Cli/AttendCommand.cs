using System.CommandLine;
using LaspNative.Model;
using LaspNative.Runtime;

namespace LaspNative.Cli;

/// <summary>lasp attend: one attention call on the user's own tensors.</summary>
internal static class AttendCommand
{
    public static Command Create(Terminal terminal)
    {
        var common = new CommonOptions();
        Option<string?> input = OptionKinds.Text("--input", "Safetensors file with q [B,N,H,D], k [B,N,Hk,D], v [B,N,Hk,E] and optional do [B,N,H,E], cu_seqlens [n+1], and for linear attention log_decay [H] | [B,N,H] | [B,N,H,D], initial_state and d_final_state [B or n,H,D,E].", "FILE");
        Option<string?> output = OptionKinds.Text("--output", "Safetensors file to write: o, final_state (linear), and when do was given dq, dk, dv, d_log_decay, d_initial_state.", "FILE");
        input.Required = output.Required = true;
        Option<string?> attention = OptionKinds.Choice("--attention", "Kind of attention. [default: linear]", "linear", "softmax");
        Option<bool> noCausal = new("--no-causal") { Description = "Let every token see all tokens (linear: strategy lasp2, without log_decay)." };
        Option<double?> scale = OptionKinds.Number("--scale", "Factor of q.k. [default: 1/sqrt(D)]", "X");
        var command = new ExampleCommand(
            "attend",
            "Run one attention call on tensors of a safetensors file, to compare any framework with this one.",
            "lasp attend --input call.safetensors --output result.safetensors --ranks 4",
            "lasp attend --input call.safetensors --output result.safetensors --attention softmax --softmax-strategy zigzag --ranks 2",
            "lasp attend --input call.safetensors --output result.safetensors --scale 1 --json report.json") { input, output, attention, noCausal, scale };
        common.AddTo(command);
        command.SetAction(parsed =>
        {
            common.CheckAvailable(parsed);
            if (parsed.GetValue(common.DataParallel) is > 1 and int groups) throw new LaspException($"--dp {groups} shares a batch among groups, but attend runs one call; use --ranks alone");
            string path = parsed.GetValue(input)!;
            CheckFile(path, parsed.GetValue(common.DType), out bool isF64);
            AttendReport report = AttendCall.Run(
                new AttendOptions
                {
                    Input = path,
                    Output = parsed.GetValue(output)!,
                    Attention = parsed.GetValue(attention) == "softmax" ? AttentionKind.Softmax : AttentionKind.Linear,
                    Causal = !parsed.GetValue(noCausal),
                    Scale = parsed.GetValue(scale),
                    Strategy = common.StrategyOf(parsed),
                    SoftmaxStrategy = common.SoftmaxStrategyOf(parsed),
                    World = common.WorldOf(parsed, cpuOnly: isF64),
                },
                terminal.Cancellation);
            if (UnusedStrategy(common, parsed, report.Attention) is { } unused) terminal.Note($"attend: {unused}");
            terminal.Note($"attend: {report.Attention.ToString().ToLowerInvariant()} attention, {report.Strategy}, {report.Ranks.Count} {(report.Ranks.Count == 1 ? "rank" : "ranks")} on {report.Device}, {report.DType}, B {report.Batch} N {report.Tokens} H {report.Heads} Hk {report.KeyHeads} D {report.KeyDim} E {report.ValueDim}{(report.Documents is { } documents ? $", {documents} documents" : "")}; wrote {string.Join(", ", report.Written)}");
            JsonReport.Write(Summary(report), parsed.GetValue(common.Json), terminal);
        });
        return command;
    }

    /// <summary>What the options say about the file must fit it. F64 runs on the CPU only, so that auto takes the CPU for it.</summary>
    private static void CheckFile(string path, string? dtype, out bool isF64)
    {
        using SafetensorsFile file = SafetensorsFile.Open(path);
        DType actual = file.Info("q").DType;
        bool fits = dtype switch { "bf16" => actual == DType.BF16, "fp32" => actual == DType.F32, _ => true };
        if (!fits) throw new LaspException($"{path}: --dtype {dtype} does not fit q, which is {actual}; attend computes in the tensors' own type, so leave --dtype out");
        isF64 = actual == DType.F64;
    }

    /// <summary>A strategy that was named for the other kind of attention alone says nothing about this call, which its user would like to know; null when there is none.</summary>
    private static string? UnusedStrategy(CommonOptions common, ParseResult parsed, AttentionKind kind)
    {
        (Option<string?> used, Option<string?> other, string otherKind) = kind == AttentionKind.Softmax
            ? (common.SoftmaxStrategy, common.Strategy, "linear") : (common.Strategy, common.SoftmaxStrategy, "softmax");
        return parsed.GetValue(other) is { } name && parsed.GetValue(used) is null ? $"{other.Name} {name} is for {otherKind} attention and not used here; {used.Name} chooses here" : null;
    }

    /// <summary>The call for machines.</summary>
    private static object Summary(AttendReport report) => new
    {
        report.Device,
        Attention = report.Attention.ToString().ToLowerInvariant(),
        report.Strategy,
        Dtype = report.DType.ToString(),
        report.Batch,
        report.Tokens,
        report.Heads,
        report.KeyHeads,
        report.KeyDim,
        report.ValueDim,
        report.Documents,
        report.Written,
        report.Ranks,
    };
}
