using System.CommandLine;
using LaspNative.Collectives;

namespace LaspNative.Cli;

/// <summary>lasp launch: one process per rank, each running the same lasp command.</summary>
internal static class LaunchCommand
{
    public static Command Create(Terminal terminal)
    {
        Option<int?> processes = OptionKinds.Whole("--nproc", "Processes to start on this node, one rank each.", "P", 1);
        processes.Required = true;
        Option<int?> nodes = OptionKinds.Whole("--nnodes", "Nodes of the run. [default: 1]", "M", 1);
        Option<int?> nodeRank = OptionKinds.Whole("--node-rank", "Which of the nodes this is, from 0. [default: 0]", "K", 0);
        Option<string?> address = OptionKinds.Text("--master-addr", "Where rank 0 runs. [default: 127.0.0.1]", "HOST");
        Option<int?> port = OptionKinds.Whole("--master-port", "Port that rank 0 listens on. [default on one node: a free one]", "PORT", 1);
        Argument<string[]> child = new("command") { Description = "The lasp command that every process runs, behind --.", Arity = ArgumentArity.OneOrMore };
        var command = new ExampleCommand(
            "launch",
            "Start one process per rank, with RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT set; torchrun's names.",
            "lasp launch --nproc 2 -- train --data . --device cuda",
            "lasp launch --nproc 8 --nnodes 2 --node-rank 0 --master-addr node0 --master-port 29500 -- train --data corpus") { processes, nodes, nodeRank, address, port, child };
        command.Validators.Add(result =>
        {
            if (result.GetResult(child)?.Tokens is [{ Value: "launch" }, ..]) result.AddError("launch cannot launch itself; put another command behind --");
        });
        command.SetAction(parsed => ProcessLauncher.Run(
            new LaunchOptions(
                parsed.GetValue(processes)!.Value,
                parsed.GetValue(nodes) ?? 1,
                parsed.GetValue(nodeRank) ?? 0,
                parsed.GetValue(address) ?? "127.0.0.1",
                parsed.GetValue(port) ?? 0),
            parsed.GetValue(child)!));
        return command;
    }
}
